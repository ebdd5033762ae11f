/* Helpers of every file: die() during set-up, descriptors that close with their scope, raw system calls. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* For set-up only: prints `wshd: WHAT: ON: ERRNO TEXT` and exits 1. The child of a launch sends the line to the launcher. */
_Noreturn void die(const char *what, const char *on);
extern void (*on_die)(void); /* removes what the launcher has made */
extern int die_fd; /* where die() writes: 2, or in the child of a launch its channel */
extern const char *program;

static inline void close_fd(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}
static inline int steal_fd(int *fd)
{
    int taken = *fd;
    *fd = -1;
    return taken;
}
#define scoped_fd __attribute__((cleanup(close_fd)))

/* The name of an error, such as "ENOENT"; "E?" for one that is not in the table. */
const char *errno_name(int error);
/* Parses a whole word as a decimal number without sign, up to max. False: it is something else. */
bool parse_number(const char *word, uint64_t max, uint64_t *ret_value);
int hex_decode(const char *hex, uint8_t *out, size_t size); /* number of bytes, or -EINVAL */
int write_all(int fd, const void *data, size_t size);       /* 0 or -errno */

/* The mount API of kernel 5.2 and later, for which musl has no wrappers. All return -1 and set errno. */
struct idmap_attr {
    uint64_t set, clear, propagation, userns_fd;
};
int sys_open_tree(int dir, const char *path, unsigned flags);
int sys_move_mount(int from, const char *from_path, int to, const char *to_path, unsigned flags);
int sys_fsopen(const char *type);
int sys_fsconfig(int fd, unsigned command, const char *key, const void *value, int aux);
int sys_fsmount(int fd, unsigned attributes);
int sys_mount_setattr(int fd, unsigned flags, const struct idmap_attr *attr);
int sys_openat2(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
