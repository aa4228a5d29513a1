// Every block that C code gives back is wiped first: PKCS#11 libraries, and the
// bindings to them, copy PINs and key shares to the C heap and free the copies as
// they are. The definition here takes the place of the C library's own for the
// whole process, libraries loaded later included, because the executable comes
// first in the order of symbols; glibc keeps the real one reachable.

#define _GNU_SOURCE
#include <stdlib.h>

#if defined(__GLIBC__)

#include <errno.h>
#include <malloc.h>
#include <string.h>

extern void __libc_free(void *);

void free(void *block) {
	if (block == NULL)
		return;
	int saved = errno;
	explicit_bzero(block, malloc_usable_size(block));
	__libc_free(block);
	errno = saved;
}

int trikey_wipes_c_heap(void) { return 1; }

#else

int trikey_wipes_c_heap(void) { return 0; }

#endif
