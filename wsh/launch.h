/* Making a container: the launcher's part outside (tree.c, launch.c) and the child's part inside (inside.c, net.c). */
#pragma once
#include "plan.h"

#define STAGE "/tmp" /* the launcher mounts a tmpfs here, in its own mount namespace */
#define STAGE_ROOT STAGE "/root"

/* Descriptors of every host path that the plan names, opened before any mount covers a path. */
struct opened {
    int layers[MAX_LAYERS], home_layers[MAX_LAYERS], upper, home_upper, binds[MAX_BINDS];
    int cgroup_init[MAX_CGROUPS], cgroup_job[MAX_CGROUPS];
    int listener;
};
/* What pid 1 keeps after its set-up. */
struct inside {
    const struct plan *plan;
    int listener, root_fd, pts_fd;
    const int *cgroup_job;
    uint64_t nofile_soft, nofile_hard;
};

void tree_open(const struct plan *plan, struct opened *ret_opened);
void tree_undo(void); /* removes the socket; die() calls it */
void tree_build(const struct plan *plan, const struct opened *opened, int userns_fd);

/* Opens PATH below `root` and follows no link. Missing directories are made, owned by root inside. die()s. */
int ensure_below(int root, const char *path, bool directory);
int mount_new(const char *type, const char *const options[][2], unsigned attributes);
void mount_onto(int mount_fd, int target_fd, const char *what);

/* /sys/fs/cgroup of the container, in the cgroup namespace of the caller. die()s. */
void cgroup_show(int root, const struct plan *plan);

void net_settings(const struct plan *plan);
void net_configure(const struct plan *plan);

int launch(const struct plan *plan);
_Noreturn void inside_main(const struct plan *plan, const struct opened *opened, int channel);
