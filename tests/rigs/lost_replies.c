/* Loses replies as NFSv3 does: every fifth rename, link or unlink on FUSE is done, and its repetition's error returned. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <sys/vfs.h>

static atomic_uint calls;

static int lost(int folder, int error)
{
    struct statfs found;
    if (fstatfs(folder, &found) != 0 || found.f_type != 0x65735546 || atomic_fetch_add(&calls, 1) % 5 != 4)
        return 0;
    errno = error;
    return -1;
}

int renameat(int source_folder, const char *source, int target_folder, const char *target)
{
    int (*real)(int, const char *, int, const char *) = dlsym(RTLD_NEXT, "renameat");
    int failed = real(source_folder, source, target_folder, target);
    return failed ? failed : lost(source_folder, ENOENT);
}

int linkat(int source_folder, const char *source, int target_folder, const char *target, int flags)
{
    int (*real)(int, const char *, int, const char *, int) = dlsym(RTLD_NEXT, "linkat");
    int failed = real(source_folder, source, target_folder, target, flags);
    return failed ? failed : lost(source_folder, EEXIST);
}

int unlinkat(int folder, const char *name, int flags)
{
    int (*real)(int, const char *, int) = dlsym(RTLD_NEXT, "unlinkat");
    int failed = real(folder, name, flags);
    return failed ? failed : lost(folder, ENOENT);
}
