/* The pool's view of libosip2: one weak reference, so that this library neither needs osip2 nor fails without it.
 * The prototype is osip2's own since 2.2.0 (malloc, realloc, free); no osip2 header is needed for it. */
#include <stddef.h>

typedef void *partyline_malloc_fn(size_t);
typedef void *partyline_realloc_fn(void *, size_t);
typedef void partyline_free_fn(void *);

#ifdef _WIN32 /* a name leaves a dll only when it is exported */
#define HIDDEN
#else
#define HIDDEN __attribute__((visibility("hidden")))
#endif

extern void osip_set_allocators(partyline_malloc_fn *, partyline_realloc_fn *, partyline_free_fn *)
    __attribute__((weak));

HIDDEN int partyline_glue_has_osip(void)
{
    return osip_set_allocators != NULL;
}

/* Returns 1 where an osip2 with replaceable allocators is present. */
HIDDEN int partyline_glue_set_allocators(partyline_malloc_fn *m, partyline_realloc_fn *r, partyline_free_fn *f)
{
    if (!osip_set_allocators)
        return 0;
    osip_set_allocators(m, r, f);
    return 1;
}

#if !defined __x86_64__ || defined _WIN32
/* The thread's block; see src/pool/tls.rs, which knows its layout. On x86-64 it is defined and read there,
 * but on Windows. */
#ifndef _WIN32
__attribute__((tls_model("initial-exec")))
#endif
static __thread void *partyline_tls_block[4];

HIDDEN void *partyline_glue_tls(void)
{
    return partyline_tls_block;
}
#endif
