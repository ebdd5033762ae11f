/* Starting a job. */
#pragma once
#include "jobs.h"
#include "launch.h"

struct spawn_request {
    const char *id, *cwd;
    const char **arguments, **environment, **groups, **rlimits;
    int argument_count, environment_count, group_count, rlimit_count;
    uint64_t uid, gid, limit, rows, columns;
    mode_t mask;
    enum io io;
    enum over over;
    int stdin_fd, stdout_fd, stderr_fd, record_fd;
};
/* Starts a job and adds it to the list. 0 or -errno. Whether exec succeeded is known later (`execed`, `failure`). */
int spawn(struct jobs *jobs, const struct inside *inside, struct spawn_request *request, struct job **ret_job);
const char *spawn_refusal(const struct spawn_request *request); /* why its descriptors are refused; NULL: they are accepted */
