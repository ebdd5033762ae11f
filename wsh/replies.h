/* Replies to clients; part of the requests layer. */
#pragma once
#include "requests.h"

void reply_ok(struct client *client);
void reply_error(struct client *client, int error, const char *text);
void reply_started(struct client *client, const struct job *job);
void reply_ending(struct client *client, const struct job *job);
/* Writes "exit N" and the like, with `separator` between the words. Returns the length, as snprintf does. */
int describe(const struct job *job, char *text, size_t size, char separator);
