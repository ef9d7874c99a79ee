/* osip_fifo_*: order, the public fields, and threads that wait. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <osip2/osip.h>
#include <osip2/osip_mt.h>

static osip_fifo_t *work, *done;
static atomic_long taken;

static void *consume(void *arg)
{
    long count = 0, *element;

    (void)arg;
    while ((element = osip_fifo_get(work)) != NULL && *element >= 0) {
        count++;
        atomic_fetch_add(&taken, *element);
        /* Up to 3.x a fifo holds a thousand: the rest is refused. */
        osip_fifo_add(done, element);
    }
    return (void *)count;
}

static void *produce(void *arg)
{
    long *numbers = arg;

    for (int i = 0; i < 20000; i++)
        while (osip_fifo_add(work, &numbers[i]) != 0)
            sched_yield();
    return NULL;
}

static void show(osip_fifo_t *ff, const char *what)
{
    printf("%s: size %d queue %d state %d\n", what, osip_fifo_size(ff), osip_list_size(&ff->queue), ff->state);
}

int main(void)
{
    static long numbers[40000], end = -1;
    osip_fifo_t *ff = osip_malloc(sizeof *ff);
    pthread_t producers[2], consumers[3];
    long sum = 0, count = 0, *element;

    osip_fifo_init(ff);
    show(ff, "empty");
    printf("tryget %d\n", osip_fifo_tryget(ff) == NULL);
    for (int i = 0; i < 6; i++) {
        numbers[i] = i;
        printf("add %d\n", i % 3 == 2 ? osip_fifo_insert(ff, &numbers[i]) : osip_fifo_add(ff, &numbers[i]));
        show(ff, "filled");
    }
    /* A program may take from the queue itself. */
    osip_list_remove(&ff->queue, 5);
    osip_list_add(&ff->queue, &numbers[5], -1);
    osip_list_remove(&ff->queue, 2);
    osip_list_add(&ff->queue, &numbers[0], 1);
    osip_fifo_add(ff, &numbers[4]);
    show(ff, "by hand");
    while ((element = osip_fifo_tryget(ff)) != NULL) {
        printf("got %ld\n", *element);
        show(ff, "then");
    }
    /* More than the thousand that old versions hold. */
    for (int i = 0; i < 1003; i++) {
        int code = osip_fifo_add(ff, &numbers[i]);
        if (i > 996)
            printf("add %d: %d, state %d\n", i, code, ff->state);
    }
    printf("insert %d\n", osip_fifo_insert(ff, &numbers[7]));
    show(ff, "many");
    printf("got %ld\n", *(long *)osip_fifo_tryget(ff));
    printf("insert %d\n", osip_fifo_insert(ff, &numbers[8]));
    while ((element = osip_fifo_tryget(ff)) != NULL)
        sum += *element;
    printf("sum %ld\n", sum);
    sum = 0;
    show(ff, "drained");
    osip_fifo_add(ff, &numbers[1]);
    printf("get %ld\n", *(long *)osip_fifo_get(ff));
    show(ff, "last");
    osip_fifo_free(ff);
    osip_fifo_free(NULL);

    work = osip_malloc(sizeof *work);
    done = osip_malloc(sizeof *done);
    osip_fifo_init(work);
    osip_fifo_init(done);
    for (long i = 0; i < 40000; i++)
        numbers[i] = i;
    for (int i = 0; i < 3; i++)
        pthread_create(&consumers[i], NULL, consume, NULL);
    for (int i = 0; i < 2; i++)
        pthread_create(&producers[i], NULL, produce, &numbers[i * 20000]);
    for (int i = 0; i < 2; i++)
        pthread_join(producers[i], NULL);
    for (int i = 0; i < 3; i++)
        while (osip_fifo_add(work, &end) != 0)
            sched_yield();
    for (int i = 0; i < 3; i++) {
        void *got;
        pthread_join(consumers[i], &got);
        count += (long)got;
    }
    while ((element = osip_fifo_tryget(done)) != NULL)
        sum++;
    printf("through threads: %ld of 40000, sum %ld, passed on %ld\n", count, (long)taken, sum);
    show(work, "work");
    show(done, "done");
    osip_fifo_free(work);
    osip_fifo_free(done);
    return 0;
}
