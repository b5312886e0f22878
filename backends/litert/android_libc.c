// Stands for Android's C library when linking, and for nothing else: the library that is linked
// with it asks the phone for these by name. See system.h.
// clang-format off
#define FUNCTION(name) void name(void) {}
FUNCTION(malloc) FUNCTION(calloc) FUNCTION(free) FUNCTION(getenv) FUNCTION(strcmp) FUNCTION(dprintf)
FUNCTION(pthread_create) FUNCTION(pthread_join) FUNCTION(memset) FUNCTION(posix_memalign) FUNCTION(memcpy)
FUNCTION(clock_gettime) FUNCTION(syscall) FUNCTION(pthread_mutex_trylock)
FUNCTION(pthread_mutex_unlock)
