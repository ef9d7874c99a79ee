/* Errors on purpose for valgrind's memcheck, one per run, through blocks that osip2 gets from the preloaded library:
 * memcheck overflow|leak|after_free|nothing. scripts/memcheck.sh wants each reported. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <osip2/osip.h>
#include <osipparser2/osip_port.h>

int main(int argc, char **argv)
{
    const char *which = argc > 1 ? argv[1] : "nothing";
    char *volatile text;

    parser_init();
    text = osip_strdup("0123456789");
    if (strcmp(which, "overflow") == 0)
        text[strlen(text) + 1] = 'x';
    if (strcmp(which, "leak") == 0)
        text = NULL;
    osip_free(text);
    if (strcmp(which, "after_free") == 0 && text[3] == '3')
        puts("still there");
    return 0;
}
