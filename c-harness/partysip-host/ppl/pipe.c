/* libppl: pipes and time. Both ends of a pipe block, as partysip's do. */
#include <partyline/partysip.h>

#include <time.h>
#include <unistd.h>

ppl_pipe_t *ppl_pipe(void) {
  ppl_pipe_t *new = osip_malloc(sizeof *new);
  if (new != NULL && pipe(new->pipes) != 0) {
    osip_free(new);
    new = NULL;
  }
  return new;
}

int ppl_pipe_close(ppl_pipe_t *pipe) {
  if (pipe == NULL) return -1;
  close(pipe->pipes[0]);
  close(pipe->pipes[1]);
  osip_free(pipe);
  return 0;
}

int ppl_pipe_read(ppl_pipe_t *pipe, void *buffer, size_t size) {
  return pipe == NULL ? -1 : (int)read(pipe->pipes[0], buffer, size);
}

int ppl_pipe_write(ppl_pipe_t *pipe, const void *buffer, size_t size) {
  return pipe == NULL ? -1 : (int)write(pipe->pipes[1], buffer, size);
}

int ppl_pipe_get_read_descr(ppl_pipe_t *pipe) { return pipe == NULL ? -1 : pipe->pipes[0]; }

ppl_time_t ppl_time(void) { return (ppl_time_t)time(NULL); }
