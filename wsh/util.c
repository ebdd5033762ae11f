/* Fatal errors, parsers of single words, and wrappers of system calls that libc lacks. */
#include "util.h"
#include <linux/openat2.h>
#include <stdio.h>

void (*on_die)(void);
int die_fd = 2;
const char *program = "wshd";

_Noreturn void die(const char *what, const char *on)
{
    int error = errno;
    char line[512];
    int size = snprintf(line, sizeof line, "%s: %s: %s: %s %s\n", program, what, on, errno_name(error),
                        error ? strerror(error) : "");
    if (size > (int)sizeof line - 1) {
        size = sizeof line - 1;
        line[size - 1] = '\n';
    }
    (void)write_all(die_fd, line, (size_t)size);
    if (on_die)
        on_die();
    _exit(1);
}

const char *errno_name(int error)
{
    static const struct {
        int number;
        const char *name;
    } names[] = {
        {EPERM, "EPERM"},   {ENOENT, "ENOENT"}, {ESRCH, "ESRCH"},     {EIO, "EIO"},         {E2BIG, "E2BIG"},
        {ENOEXEC, "ENOEXEC"}, {EBADF, "EBADF"}, {EAGAIN, "EAGAIN"},   {ENOMEM, "ENOMEM"},   {EACCES, "EACCES"},
        {EBUSY, "EBUSY"},   {EEXIST, "EEXIST"}, {EXDEV, "EXDEV"},     {ENOTDIR, "ENOTDIR"}, {EISDIR, "EISDIR"},
        {EINVAL, "EINVAL"}, {EMFILE, "EMFILE"}, {ETXTBSY, "ETXTBSY"}, {ENOSPC, "ENOSPC"},   {EROFS, "EROFS"},
        {ELOOP, "ELOOP"},   {ENAMETOOLONG, "ENAMETOOLONG"}, {ENOSYS, "ENOSYS"}, {ENODEV, "ENODEV"}, {EDQUOT, "EDQUOT"},
        {ENFILE, "ENFILE"}, {EADDRINUSE, "EADDRINUSE"}, {ECANCELED, "ECANCELED"}, {ECHILD, "ECHILD"}, {ENXIO, "ENXIO"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].number == error)
            return names[i].name;
    return "E?";
}

bool parse_number(const char *word, uint64_t max, uint64_t *ret_value)
{
    uint64_t value = 0;
    if (!*word)
        return false;
    for (; *word; word++) {
        if (*word < '0' || *word > '9')
            return false;
        unsigned digit = (unsigned)(*word - '0');
        if (value > (max - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    *ret_value = value;
    return true;
}

static int nibble(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

int hex_decode(const char *hex, uint8_t *out, size_t size)
{
    size_t length = strlen(hex);
    if (length % 2 || length / 2 > size)
        return -EINVAL;
    for (size_t i = 0; i < length / 2; i++) {
        int high = nibble(hex[2 * i]), low = nibble(hex[2 * i + 1]);
        if (high < 0 || low < 0)
            return -EINVAL;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return (int)(length / 2);
}

int write_all(int fd, const void *data, size_t size)
{
    const char *at = data;
    while (size) {
        ssize_t done = write(fd, at, size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -errno;
        at += done;
        size -= (size_t)done;
    }
    return 0;
}

int sys_open_tree(int dir, const char *path, unsigned flags)
{
    return (int)syscall(SYS_open_tree, dir, path, flags);
}
int sys_move_mount(int from, const char *from_path, int to, const char *to_path, unsigned flags)
{
    return (int)syscall(SYS_move_mount, from, from_path, to, to_path, flags);
}
int sys_fsopen(const char *type)
{
    return (int)syscall(SYS_fsopen, type, 1 /* FSOPEN_CLOEXEC */);
}
int sys_fsconfig(int fd, unsigned command, const char *key, const void *value, int aux)
{
    return (int)syscall(SYS_fsconfig, fd, command, key, value, aux);
}
int sys_fsmount(int fd, unsigned attributes)
{
    return (int)syscall(SYS_fsmount, fd, 1 /* FSMOUNT_CLOEXEC */, attributes);
}
int sys_mount_setattr(int fd, unsigned flags, const struct idmap_attr *attr)
{
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
    return (int)syscall(SYS_mount_setattr, fd, "", flags | AT_EMPTY_PATH, attr, sizeof *attr);
}
int sys_openat2(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
    struct open_how how = {.flags = flags | O_CLOEXEC, .mode = mode, .resolve = resolve};
    return (int)syscall(SYS_openat2, dir, path, &how, sizeof how);
}
