/* The child of a spawn: all that it needs is worked out before the fork (spawn.c), then it goes one straight line (child.c). */
#pragma once
#include "spawn.h"
#include <sys/resource.h>

enum { MAX_GROUPS = 64, LIMITS = 15 };
struct limit {
    int resource;
    struct rlimit value;
};
/* Everything that the child needs, worked out before the fork. */
struct child {
    const struct spawn_request *request;
    const struct inside *inside;
    struct limit limits[LIMITS + 1];
    int limit_count, fds[3], error_fd;
    bool terminal;
    gid_t groups[MAX_GROUPS];
};

/* Never returns: execs, or says on the error pipe what failed. */
_Noreturn void run_child(const struct child *child);
