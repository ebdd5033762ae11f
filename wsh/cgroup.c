/*
 * Mounts /sys/fs/cgroup inside. A JVM, Node and .NET read their limits there.
 *
 * The cgroup namespace was made in the leaf `job`, so the mount's root is that leaf and no name of the host shows. v1 has one
 * file system for each hierarchy; a mount must name all controllers of a hierarchy, or the kernel refuses it. The mount is
 * read-only, because only the manager sets limits.
 */
#include "launch.h"
#include <linux/mount.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/stat.h>

#define HARD (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
enum { MAX_NAME = 128, MAX_TOGETHER = 16 };

static const char *const shelf_options[][2] = {{"mode", "755"}, {"size", "64k"}, {NULL, NULL}};

/* Mounts one hierarchy of v1 at NAME below the shelf. If it has several controllers, each gets a link to it. */
static void show_v1(int shelf, const char *name)
{
    char words[MAX_NAME];
    const char *options[MAX_TOGETHER + 1][2] = {{NULL, NULL}};
    int count = 0;
    if (snprintf(words, sizeof words, "%s", name) >= (int)sizeof words) {
        errno = ENAMETOOLONG;
        die("cgroup-mount", name);
    }
    for (char *save = NULL, *word = strtok_r(words, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
        if (count == MAX_TOGETHER) {
            errno = E2BIG;
            die("cgroup-mount", name);
        }
        options[count++][0] = word;
    }
    scoped_fd int mounted = mount_new("cgroup", options, HARD | MOUNT_ATTR_RDONLY);
    if (mkdirat(shelf, name, 0555))
        die("make mount point", name);
    scoped_fd int at = openat(shelf, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (at < 0)
        die("mount point", name);
    mount_onto(mounted, at, name);
    for (int i = 0; count > 1 && i < count; i++)
        if (symlinkat(name, shelf, options[i][0]))
            die("link", options[i][0]);
}

void cgroup_show(int root, const struct plan *plan)
{
    if (!plan->cgroup_mount_count)
        return;
    scoped_fd int target = sys_openat2(root, "/sys/fs/cgroup", O_PATH | O_DIRECTORY, 0,
                                       RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS);
    if (target < 0)
        die("mount point", "/sys/fs/cgroup");
    if (plan->cgroup_mount_count == 1 && !strcmp(plan->cgroup_mounts[0], "cgroup2")) {
        scoped_fd int mounted = mount_new("cgroup2", NULL, HARD | MOUNT_ATTR_RDONLY);
        mount_onto(mounted, target, "/sys/fs/cgroup");
        return;
    }
    scoped_fd int shelf = mount_new("tmpfs", shelf_options, HARD);
    mount_onto(shelf, target, "/sys/fs/cgroup");
    for (int i = 0; i < plan->cgroup_mount_count; i++)
        show_v1(shelf, plan->cgroup_mounts[i]);
    struct idmap_attr attr = {.set = MOUNT_ATTR_RDONLY};
    if (sys_mount_setattr(shelf, 0, &attr))
        die("read-only", "/sys/fs/cgroup");
}
