/*
 * The list of jobs, their ends and their records.
 *
 * The first line of a record is written when three things have happened: exec's result is known, the process has been reaped,
 * and every byte that was in its pipes by then is in the spool. So whoever reads that line can read the job's whole output.
 *
 * A job that changes only sets a mark (`changed` of its output, `news` of the list). At the end of the turn `serve` replies to the
 * clients that wait for it, and only after that a removed job is freed. So no caller holds a job that has been freed.
 */
#include "jobs.h"
#include <signal.h>
#include <stdio.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>

struct job *job_find(struct jobs *jobs, const char *id)
{
    for (struct job *job = jobs->first; job; job = job->next)
        if (!strcmp(job->id, id))
            return job;
    return NULL;
}

static void job_kill(struct job *job, int signal)
{
    if (job->pid > 0 && !job->reaped)
        (void)kill(-job->pid, signal);
}

void job_add(struct job *job)
{
    struct job **at = &job->jobs->first; /* sorted, so that `list` can continue after a name whose job has been removed since */
    while (*at && strcmp((*at)->id, job->id) < 0)
        at = &(*at)->next;
    job->next = *at;
    *at = job;
    job->jobs->count++;
}

void job_drop(struct job *job)
{
    struct jobs *jobs = job->jobs;
    if (job->gone)
        return;
    for (struct job **at = &jobs->first; *at; at = &(*at)->next)
        if (*at == job) {
            *at = job->next;
            jobs->count--;
            break;
        }
    job->gone = true;
    job->next = jobs->gone;
    jobs->gone = job;
    jobs->news = true;
    close_source(jobs->loop, &job->exec);
    output_close(&job->output);
    for (int i = 0; i < 2; i++)
        close_here(jobs->loop, &job->output.streams[i].spool);
    close_here(jobs->loop, &job->record);
    close_here(jobs->loop, &job->terminal);
    close_here(jobs->loop, &job->handover);
}

void jobs_free_gone(struct jobs *jobs)
{
    while (jobs->gone) {
        struct job *job = jobs->gone;
        jobs->gone = job->next;
        free(job);
    }
}

static void record(struct job *job, const char *line, int size)
{
    /* The file is preallocated, so this fails only if the client itself has truncated it. */
    (void)write_all(job->record, line, (size_t)size);
}

/* Writes the lost bytes so far: at the exit, and again at the end if there are more. */
static void record_lost(struct job *job)
{
    char line[64];
    for (int i = 0; i < 2; i++) {
        struct stream *stream = &job->output.streams[i];
        if (stream->lost == stream->lost_recorded)
            continue;
        stream->lost_recorded = stream->lost;
        record(job, line,
               snprintf(line, sizeof line, "lost %s %llu\n", i ? "stderr" : "stdout", (unsigned long long)stream->lost));
    }
}

static void write_record(struct job *job)
{
    char line[64];
    if (job->ending == OVERRAN)
        record(job, "overran\n", 8);
    else
        record(job, line,
               snprintf(line, sizeof line, "%s %d\n", job->ending == EXITED ? "exit" : "signal", job->code));
    record_lost(job);
    job->recorded = true;
    job->jobs->news = true;
}

/* Writes the lines of the record that are due. A job that is not on the spool is removed after its last line. */
static void job_progress(struct job *job)
{
    if (!job->reaped || !job->execed || job->gone)
        return;
    if (!job->recorded) {
        if (output_is_owed(&job->output))
            return;
        write_record(job);
    }
    if (job->record >= 0 && !output_is_open(&job->output)) {
        record_lost(job);
        record(job, "end\n", 4);
        close_here(job->jobs->loop, &job->record);
        if (job->io != IO_SPOOL)
            job_drop(job);
    }
}

static void job_changed(struct later *later)
{
    struct job *job = (struct job *)((char *)later - offsetof(struct job, output.changed));
    if (job->output.overran && !job->killed) {
        job->killed = true;
        job_kill(job, SIGKILL);
    }
    job_progress(job);
}

struct job *job_new(struct jobs *jobs)
{
    struct job *job = calloc(1, sizeof *job);
    if (!job)
        return NULL;
    *job = (struct job){.exec.fd = -1, .jobs = jobs, .record = -1, .terminal = -1, .handover = -1};
    output_init(&job->output, jobs->loop, job_changed);
    return job;
}

void job_settle(struct job *job)
{
    for (int i = 0; i < 2; i++)
        stream_drain(&job->output.streams[i]);
    if (job->output.overran)
        job->ending = OVERRAN;
    job_progress(job);
}

void job_trim(struct job *job, int stream, uint64_t offset)
{
    stream_trim(&job->output.streams[stream], offset);
    if (job->reaped && job->execed)
        stream_drain(&job->output.streams[stream]);
    job_progress(job);
}

static void job_ended(struct job *job, int status)
{
    job->reaped = true;
    job->ending = WIFSIGNALED(status) ? SIGNALED : EXITED;
    job->code = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
    if (job->exec.fd >= 0)
        job->exec.handle(&job->exec, EPOLLIN); /* the result of exec comes before the record; it settles or drops the job */
    else
        job_settle(job);
}

/* One SIGCHLD may stand for several ends, so reap until no child is left. */
void jobs_reap(struct jobs *jobs)
{
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid == 0)
            return;
        if (pid < 0) {
            if (errno == EINTR)
                continue;
            break; /* ECHILD: none is left */
        }
        for (struct job *job = jobs->first; job; job = job->next)
            if (job->pid == pid && !job->reaped) {
                job_ended(job, status);
                break;
            }
    }
    if (jobs->stopping) {
        static const struct itimerspec off;
        jobs->stopping = jobs->killing = false;
        jobs->news = true;
        (void)timerfd_settime(jobs->timer.fd, 0, &off, NULL);
    }
}

static void set_timer(struct jobs *jobs, uint64_t first_ms, uint64_t period_ms)
{
    struct itimerspec when = {
        .it_value = {(time_t)(first_ms / 1000), (long)(first_ms % 1000) * 1000000},
        .it_interval = {(time_t)(period_ms / 1000), (long)(period_ms % 1000) * 1000000},
    };
    (void)timerfd_settime(jobs->timer.fd, 0, &when, NULL);
}

static void timer_ready(struct source *source, uint32_t events)
{
    struct jobs *jobs = (struct jobs *)((char *)source - offsetof(struct jobs, timer));
    uint64_t expirations;
    (void)events;
    (void)!read(source->fd, &expirations, sizeof expirations);
    if (!jobs->stopping)
        return;
    if (!jobs->killing) {
        jobs->killing = true;
        set_timer(jobs, 50, 50); /* again, for processes that a fork bomb has made since */
    }
    (void)kill(-1, SIGKILL);
    jobs_reap(jobs);
}

int jobs_open(struct jobs *jobs, struct loop *loop)
{
    *jobs = (struct jobs){.loop = loop};
    jobs->timer = (struct source){timer_ready, timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)};
    return jobs->timer.fd < 0 ? -errno : watch(loop, &jobs->timer, EPOLLIN);
}

static uint64_t now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void jobs_stop(struct jobs *jobs, uint64_t grace_ms)
{
    uint64_t at_ms = now_ms() + grace_ms;
    bool first = !jobs->stopping;
    jobs->stopping = true;
    if (first) {
        (void)kill(-1, SIGTERM);
        (void)kill(-1, SIGCONT);
        /* A login shell ignores TERM, so a stop would take its whole grace; the shell ends when its terminal hangs up. */
        for (struct job *job = jobs->first; job; job = job->next)
            if (job->terminal >= 0)
                job_kill(job, SIGHUP);
    }
    /* A second stop may shorten the grace, and never extends it. */
    if (grace_ms && !jobs->killing && (first || at_ms < jobs->kill_at_ms)) {
        jobs->kill_at_ms = at_ms;
        set_timer(jobs, grace_ms, 0);
    } else if (!grace_ms) {
        jobs->killing = true;
        (void)kill(-1, SIGKILL);
        set_timer(jobs, 50, 50);
    }
    jobs_reap(jobs);
}
