// A disk that is slow or broken, for a process that loads this before the C library (LD_PRELOAD): what the file says that
// SYNCS names holds for each fsync and fdatasync. A number is how many microseconds longer it takes; "fail" is an EIO.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int as_told(int fd, const char *name) {
    char told[32] = "";
    const char *path = getenv("SYNCS");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        if (read(file, told, sizeof told - 1) < 0)
            told[0] = '\0';
        close(file);
    }
    if (strncmp(told, "fail", 4) == 0) {
        errno = EIO;
        return -1;
    }
    usleep((useconds_t)strtoul(told, NULL, 10));
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(fd);
}

int fsync(int fd) { return as_told(fd, "fsync"); }

int fdatasync(int fd) { return as_told(fd, "fdatasync"); }
