// What the delegate calls of the C library, declared here: Android's headers come with its NDK
// alone, and these few look alike everywhere.
#ifndef EDGEPRUNE_LITERT_SYSTEM_H
#define EDGEPRUNE_LITERT_SYSTEM_H

#include <stddef.h>

extern "C" {
void* malloc(size_t);
void* calloc(size_t, size_t);
void free(void*);
int posix_memalign(void**, size_t alignment, size_t);
char* getenv(const char*);
int strcmp(const char*, const char*);
int clock_gettime(int clock, long* seconds_and_nanoseconds);
int pthread_create(unsigned long*, const void*, void* (*)(void*), void*);
int pthread_join(unsigned long, void**);
int pthread_mutex_trylock(void*);
int pthread_mutex_unlock(void*);
long syscall(long number, ...);
int dprintf(int, const char*, ...) __attribute__((format(printf, 2, 3)));
}

#endif
