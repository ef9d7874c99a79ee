/* What the two databases share: row identifiers. */
#include "store.h"

#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

void store_ruid(char ruid[64]) {
  static atomic_uint count;
  static time_t start;
  if (start == 0) start = time(NULL);
  snprintf(ruid, 64, "ulcx-%lx-%x-%x", (unsigned long)start, (unsigned)getpid(), atomic_fetch_add(&count, 1));
}
