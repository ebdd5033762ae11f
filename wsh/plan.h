/* Parses and checks the launch plan (PROTOCOL.md, "1. The launch plan"). Every string of the result points into one buffer. */
#pragma once
#include <linux/filter.h>
#include "util.h"

enum { MAX_LAYERS = 15, MAX_BINDS = 64, MAX_FILES = 16, MAX_CGROUPS = 16, MAX_FILTER = 4096 };

struct filter {
    struct sock_filter code[MAX_FILTER];
    unsigned short count;
};
struct plan {
    const char *handle, *hostname, *home, *overlay, *socket, *shell;
    uint32_t id_base, id_count;
    const char *layers[MAX_LAYERS], *home_layers[MAX_LAYERS];
    int layer_count, home_layer_count;
    const char *upper, *home_upper;
    struct bind {
        const char *source, *target;
        bool read_only, mapped;
    } binds[MAX_BINDS];
    int bind_count;
    struct plan_file {
        const char *path, *content;
        mode_t mode;
    } files[MAX_FILES];
    int file_count;
    uint64_t shm_bytes;
    const char *cgroup_init[MAX_CGROUPS], *cgroup_job[MAX_CGROUPS];
    int cgroup_init_count, cgroup_job_count;
    const char *cgroup_mounts[MAX_CGROUPS]; /* controllers of v1, "cpu,cpuacct", or cgroup2 alone */
    int cgroup_mount_count;
    bool veth;
    struct {
        const char *address, *gateway, *gateway_mac;
        unsigned prefix, mtu;
        bool given;
    } eth0;
    uint64_t bounding;
    struct filter job_filter, init_filter;
};

/* Both die() on an invalid plan. The words must outlive the plan. */
void plan_parse(struct plan *plan, char **words, int count);
char **plan_read(int fd, int *ret_count);
