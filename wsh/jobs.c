/* Jobs: their list, their end, their records. */
#include "serve.h"
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

struct job *job_find(struct server *server, const char *id)
{
    for (struct job *job = server->jobs; job; job = job->next)
        if (!strcmp(job->id, id))
            return job;
    return NULL;
}

void job_kill(struct job *job, int signal)
{
    if (job->pid > 0 && !job->reaped)
        (void)kill(-job->pid, signal);
}

/* Everybody who waits is told how it ended (or that it is gone). */
static void answer_waiters(struct job *job)
{
    for (struct client *client = job->server->clients; client; client = client->next)
        if (client->waits_for == job) {
            client->waits_for = NULL;
            reply_ending(client, job);
            client_resume(client);
        }
}

void job_add(struct job *job)
{
    struct job **at = &job->server->jobs; /* sorted: `list` pages by name, also when the one named is gone by then */
    while (*at && strcmp((*at)->id, job->id) < 0)
        at = &(*at)->next;
    job->next = *at;
    *at = job;
    job->server->job_count++;
}

void job_free(struct job *job)
{
    struct server *server = job->server;
    for (struct job **at = &server->jobs; *at; at = &(*at)->next)
        if (*at == job) {
            *at = job->next;
            server->job_count--;
            break;
        }
    answer_waiters(job);
    if (job->exec.fd >= 0) {
        unwatch(server, &job->exec);
        (void)close(job->exec.fd);
    }
    for (int i = 0; i < 2; i++) {
        stream_close(&job->streams[i]);
        close_fd(&job->streams[i].spool);
    }
    close_fd(&job->record);
    close_fd(&job->master);
    free(job);
    accept_again(server);
}

static void record(struct job *job, const char *line, int size)
{
    /* The file is preallocated; a client that took the space away has only itself to blame. */
    (void)write_all(job->record, line, (size_t)size);
}

/* The total so far, at the exit and again at the end when it has grown. */
static void record_lost(struct job *job)
{
    char line[64];
    for (int i = 0; i < 2; i++) {
        struct stream *stream = &job->streams[i];
        if (stream->lost == stream->lost_told)
            continue;
        stream->lost_told = stream->lost;
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
    answer_waiters(job);
}

void job_progress(struct job *job)
{
    if (!job->reaped || !job->execed)
        return;
    if (!job->recorded) {
        for (int i = 0; i < 2; i++)
            if (job->streams[i].source.fd >= 0 && job->streams[i].owed)
                return;
        write_record(job);
    }
    if (job->streams[0].source.fd < 0 && job->streams[1].source.fd < 0)
        accept_again(job->server);
    if (job->record >= 0 && job->streams[0].source.fd < 0 && job->streams[1].source.fd < 0) {
        record_lost(job);
        record(job, "end\n", 4);
        close_fd(&job->record);
        job->record = -1;
        if (job->io != IO_SPOOL)
            job_free(job);
    }
}

void job_settle(struct job *job)
{
    for (int i = 0; i < 2; i++)
        stream_drain(&job->streams[i]);
    if (job->overran)
        job->ending = OVERRAN;
    job_progress(job);
}

static void job_ended(struct job *job, int status)
{
    job->reaped = true;
    job->ending = WIFSIGNALED(status) ? SIGNALED : EXITED;
    job->code = WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
    if (job->exec.fd >= 0)
        job->exec.handle(&job->exec, EPOLLIN); /* exec's word comes before the record; settles or frees the job */
    else
        job_settle(job);
}

void jobs_reap(struct server *server)
{
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid == 0)
            return;
        if (pid < 0) {
            if (errno == EINTR)
                continue;
            if (server->stopping)
                stop_finish(server);
            return;
        }
        for (struct job *job = server->jobs; job; job = job->next)
            if (job->pid == pid && !job->reaped) {
                job_ended(job, status);
                break;
            }
    }
}
