/*
 * The launcher builds the file system tree in a mount namespace of its own.
 *
 * Once the child has copied the namespace, mounts made here are locked: no capability inside can undo them. Each layer becomes
 * an idmapped clone, which is first mounted below STAGE, because overlay on 6.1 refuses a clone that is mounted nowhere. Overlay
 * gets the short path below STAGE: so no path of the host shows inside, and fsconfig's limit of 255 bytes is kept. Paths in the
 * tree come from a stack, so they are opened with openat2 and no link is followed.
 */
#include "launch.h"
#include <linux/mount.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

enum { MAX_PATH = 4096 };
#define NO_LINKS (RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)

static const struct {
    const char *name;
    unsigned major, minor;
} devices[] = {{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};

static const struct {
    const char *name, *target;
} device_links[] = {{"fd", "/proc/self/fd"},
                    {"stdin", "/proc/self/fd/0"},
                    {"stdout", "/proc/self/fd/1"},
                    {"stderr", "/proc/self/fd/2"},
                    {"ptmx", "pts/ptmx"}};

static const char *const mount_points[] = {"/proc", "/sys", "/dev", "/tmp"};

static int undo_socket_dir = -1;
static const char *undo_socket_name;

void tree_undo(void)
{
    if (undo_socket_dir >= 0)
        (void)unlinkat(undo_socket_dir, undo_socket_name, 0);
}

static int open_path(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0)
        die("open", path);
    return fd;
}

static char *copy_path(char *to, const char *path)
{
    if (strlen(path) >= MAX_PATH) {
        errno = ENAMETOOLONG;
        die("path", path);
    }
    return strcpy(to, path);
}

static int bind_socket(const char *path)
{
    char copy[MAX_PATH], at[128];
    char *slash = strrchr(copy_path(copy, path), '/');
    *slash = 0;
    scoped_fd int dir = open_path(slash == copy ? "/" : copy, O_PATH | O_DIRECTORY);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    /* sun_path has at most 107 bytes, and a depot's path may be longer */
    int length = snprintf(at, sizeof at, "/proc/self/fd/%d/%s", dir, slash + 1);
    if (fd < 0 || length >= (int)sizeof address.sun_path)
        die("socket", path);
    memcpy(address.sun_path, at, (size_t)length + 1);
    mode_t old = umask(0177);
    if (bind(fd, (struct sockaddr *)&address, sizeof address))
        die("bind", path);
    (void)umask(old);
    undo_socket_dir = fcntl(dir, F_DUPFD_CLOEXEC, 3);
    undo_socket_name = strrchr(path, '/') + 1;
    on_die = tree_undo;
    return fd;
}

void tree_open(const struct plan *plan, struct opened *ret_opened)
{
    struct opened *o = ret_opened;
    for (int i = 0; i < plan->layer_count; i++)
        o->layers[i] = open_path(plan->layers[i], O_PATH | O_DIRECTORY);
    for (int i = 0; i < plan->home_layer_count; i++)
        o->home_layers[i] = open_path(plan->home_layers[i], O_PATH | O_DIRECTORY);
    o->upper = open_path(plan->upper, O_PATH | O_DIRECTORY);
    o->home_upper = plan->home ? open_path(plan->home_upper, O_PATH | O_DIRECTORY) : -1;
    for (int i = 0; i < plan->bind_count; i++)
        o->binds[i] = open_path(plan->binds[i].source, O_PATH);
    for (int i = 0; i < plan->cgroup_init_count; i++)
        o->cgroup_init[i] = open_path(plan->cgroup_init[i], O_WRONLY);
    for (int i = 0; i < plan->cgroup_job_count; i++)
        o->cgroup_job[i] = open_path(plan->cgroup_job[i], O_WRONLY);
    o->listener = bind_socket(plan->socket);
}

int mount_new(const char *type, const char *const options[][2], unsigned attributes)
{
    scoped_fd int fs = sys_fsopen(type);
    if (fs < 0)
        die("fsopen", type);
    for (int i = 0; options && options[i][0]; i++) {
        const char *value = options[i][1];
        if (sys_fsconfig(fs, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, options[i][0], value, 0))
            die(type, options[i][0]);
    }
    if (sys_fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
        die("mount", type);
    int mounted = sys_fsmount(fs, attributes);
    if (mounted < 0)
        die("fsmount", type);
    return mounted;
}

void mount_onto(int mount_fd, int target_fd, const char *what)
{
    if (sys_move_mount(mount_fd, "", target_fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH))
        die("move_mount", what);
}

int ensure_below(int root, const char *path, bool directory)
{
    int at = sys_openat2(root, path, O_PATH, 0, NO_LINKS);
    if (at >= 0)
        return at;
    if (errno != ENOENT)
        die("mount point", path);
    char copy[MAX_PATH], *save = NULL;
    at = fcntl(root, F_DUPFD_CLOEXEC, 3);
    for (char *name = strtok_r(copy_path(copy, path), "/", &save), *next; name; name = next) {
        next = strtok_r(NULL, "/", &save);
        scoped_fd int parent = steal_fd(&at);
        /* Each part is resolved below its parent directory, so `..` stays in it. */
        if (!strcmp(name, "..")) {
            errno = EINVAL;
            die("mount point", path);
        }
        at = sys_openat2(parent, name, O_PATH, 0, NO_LINKS);
        if (at < 0 && errno == ENOENT) {
            if (next || directory ? mkdirat(parent, name, 0755) : mknodat(parent, name, S_IFREG | 0644, 0))
                die("make mount point", path);
            at = sys_openat2(parent, name, O_PATH, 0, NO_LINKS);
        }
        if (at < 0)
            die("mount point", path);
    }
    return at;
}

/* Mounts an idmapped, read-only clone of a layer at STAGE/NAME. Its descriptor can be used as a lower. */
static int park(int layer, int userns_fd, const char *name)
{
    int clone = sys_open_tree(layer, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    struct idmap_attr attr = {.set = MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY, .userns_fd = (uint64_t)userns_fd};
    if (clone < 0 || sys_mount_setattr(clone, 0, &attr))
        die("idmapped clone of layer", name);
    if (mkdir(name, 0700) || sys_move_mount(clone, "", AT_FDCWD, name, MOVE_MOUNT_F_EMPTY_PATH))
        die("park layer", name);
    return clone;
}

static int make_overlay(const int *layers, int count, int upper, const char *extra, int userns_fd, const char *name)
{
    char lower[256] = "", up[64], work[64], words[256], where[32];
    int parked[MAX_LAYERS];
    size_t used = 0;
    for (int i = 0; i < count; i++) {
        (void)snprintf(where, sizeof where, STAGE "/%s%d", name, i & 15);
        parked[i] = park(layers[i], userns_fd, where);
        /* A short name: fsconfig takes 255 bytes at most, and 15 of these fit. */
        used += (size_t)snprintf(lower + used, sizeof lower - used, "%s%s", i ? ":" : "", where);
    }
    (void)snprintf(up, sizeof up, "/proc/self/fd/%d/upper", upper);
    (void)snprintf(work, sizeof work, "/proc/self/fd/%d/work", upper);
    if (snprintf(words, sizeof words, "%s", extra) >= (int)sizeof words) {
        errno = ENAMETOOLONG;
        die("overlay", extra);
    }
    const char *options[12][2] = {{"lowerdir", lower}, {"upperdir", up}, {"workdir", work}};
    int at = 3;
    for (char *save = NULL, *word = strtok_r(words, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
        if (at == 11) {
            errno = E2BIG;
            die("overlay", extra);
        }
        char *equals = strchr(word, '=');
        if (equals)
            *equals = 0;
        options[at][0] = word;
        options[at++][1] = equals ? equals + 1 : NULL;
    }
    int mounted = mount_new("overlay", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    for (int i = 0; i < count; i++)
        (void)close(parked[i]);
    return mounted;
}

static void write_file(int root, const struct plan_file *file)
{
    char copy[MAX_PATH];
    char *slash = strrchr(copy_path(copy, file->path), '/');
    *slash = 0;
    scoped_fd int parent = ensure_below(root, *copy ? copy : "/", true);
    (void)unlinkat(parent, slash + 1, 0); /* replace a link or an old file, never write through it */
    scoped_fd int fd = openat(parent, slash + 1, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, file->mode);
    if (fd < 0 || write_all(fd, file->content, strlen(file->content)) || fchmod(fd, file->mode))
        die("file", file->path);
}

static void make_devices(int root, const struct plan *plan)
{
    char owner[16], size[32];
    (void)snprintf(owner, sizeof owner, "%u", plan->id_base);
    (void)snprintf(size, sizeof size, "%llu", (unsigned long long)plan->shm_bytes);
    const char *const dev_options[][2] = {{"mode", "755"}, {"uid", owner}, {"gid", owner}, {"size", "64k"}, {NULL, NULL}};
    const char *const shm_options[][2] = {{"mode", "1777"}, {"uid", owner}, {"gid", owner}, {"size", size}, {NULL, NULL}};
    scoped_fd int target = ensure_below(root, "/dev", true);
    /* Not noexec: programs that generate code map /dev/zero executable. Only root may write here. */
    scoped_fd int dev = mount_new("tmpfs", dev_options, MOUNT_ATTR_NOSUID);
    mount_onto(dev, target, "/dev");
    mode_t old = umask(0);
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        if (mknodat(dev, devices[i].name, S_IFCHR | 0666, makedev(devices[i].major, devices[i].minor)) ||
            fchownat(dev, devices[i].name, plan->id_base, plan->id_base, AT_SYMLINK_NOFOLLOW))
            die("device", devices[i].name);
    (void)umask(old);
    for (size_t i = 0; i < sizeof device_links / sizeof *device_links; i++)
        if (symlinkat(device_links[i].target, dev, device_links[i].name))
            die("device link", device_links[i].name);
    for (const char *const *name = (const char *const[]){"pts", "shm", "mqueue", NULL}; *name; name++)
        if (mkdirat(dev, *name, 0755) || fchownat(dev, *name, plan->id_base, plan->id_base, 0))
            die("device directory", *name);
    scoped_fd int shm_at = openat(dev, "shm", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    scoped_fd int shm = mount_new("tmpfs", shm_options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
    mount_onto(shm, shm_at, "/dev/shm");
}

static void make_bind(int root, const struct bind *bind, int source, int userns_fd)
{
    struct stat what;
    if (fstat(source, &what))
        die("bind", bind->source);
    scoped_fd int tree = sys_open_tree(source, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE);
    struct idmap_attr attr = {.set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (bind->read_only ? MOUNT_ATTR_RDONLY : 0)};
    if (bind->mapped)
        attr.set |= MOUNT_ATTR_IDMAP, attr.userns_fd = (uint64_t)userns_fd;
    if (tree < 0 || sys_mount_setattr(tree, AT_RECURSIVE, &attr))
        die("bind", bind->source);
    scoped_fd int target = ensure_below(root, bind->target, S_ISDIR(what.st_mode));
    mount_onto(tree, target, bind->target);
}

void tree_build(const struct plan *plan, const struct opened *opened, int userns_fd)
{
    if (mount("tmpfs", STAGE, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755") || mkdir(STAGE_ROOT, 0755))
        die("mount", STAGE);
    scoped_fd int root = make_overlay(opened->layers, plan->layer_count, opened->upper, plan->overlay, userns_fd, "l");
    scoped_fd int at = open_path(STAGE_ROOT, O_PATH | O_DIRECTORY);
    mount_onto(root, at, "/");
    /* From here on, files that are made in the tree belong to root inside. */
    (void)setfsgid(plan->id_base);
    (void)setfsuid(plan->id_base);
    for (size_t i = 0; i < sizeof mount_points / sizeof *mount_points; i++)
        (void)close(ensure_below(root, mount_points[i], true));
    for (int i = 0; i < plan->file_count; i++)
        write_file(root, &plan->files[i]);
    if (plan->home) {
        scoped_fd int target = ensure_below(root, plan->home, true);
        (void)setfsuid(0), (void)setfsgid(0);
        scoped_fd int home = make_overlay(opened->home_layers, plan->home_layer_count, opened->home_upper,
                                          plan->overlay, userns_fd, "h");
        mount_onto(home, target, plan->home);
    }
    (void)setfsuid(0), (void)setfsgid(0);
    make_devices(root, plan);
    (void)setfsgid(plan->id_base), (void)setfsuid(plan->id_base);
    for (int i = 0; i < plan->bind_count; i++)
        make_bind(root, &plan->binds[i], opened->binds[i], userns_fd);
    (void)setfsuid(0), (void)setfsgid(0);
}
