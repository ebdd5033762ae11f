/* The child of a spawn. The parent prepares everything before the fork (spawn.c); the child only carries it out (child.c). */
#pragma once
#include "spawn.h"
#include <sys/resource.h>

enum { MAX_GROUPS = 64, LIMITS = 15 };
struct limit {
    int resource;
    struct rlimit value;
};
/* Everything that the child needs, prepared before the fork. */
struct child {
    const struct spawn_request *request;
    const struct inside *inside;
    struct limit limits[LIMITS + 1];
    int limit_count, fds[3], error_fd;
    bool terminal;
    gid_t groups[MAX_GROUPS];
};

/* Never returns: it execs, or writes what failed to the error pipe. */
_Noreturn void run_child(const struct child *child);
