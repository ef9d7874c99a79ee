/* bcryptprimitives.dll for Wine 8, which has none: Rust's standard library takes its random numbers from ProcessPrng there.
 * Not for Windows, which has its own. */
#include <windows.h>

/* RtlGenRandom, by its exported name. */
BOOLEAN NTAPI SystemFunction036(PVOID into, ULONG length);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE into, SIZE_T length)
{
    while (length > 0) {
        ULONG part = length > 0x10000000 ? 0x10000000 : (ULONG)length;
        if (!SystemFunction036(into, part))
            return FALSE;
        into += part;
        length -= part;
    }
    return TRUE;
}
