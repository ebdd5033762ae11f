/* The app of the bus tests: listens on $PORT and does what the first line of a connection says.
 *
 * GET ...      answers with the environment, one variable a line
 * exit N       ends with N
 * eat          touches memory until somebody ends it
 * mask SIG     ignores a signal from now on
 *
 * Static and a few kB: it fits 16 MiB of memory beside the shell that started it.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

extern char **environ;

static void answer(int fd)
{
	dprintf(fd, "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n");
	for (char **one = environ; *one; one++)
		dprintf(fd, "%s\n", *one);
}

static void eat(void)
{
	for (;;)
		memset(malloc(1 << 20), 1, 1 << 20);
}

int main(void)
{
	const char *port = getenv("PORT");
	struct sockaddr_in here = {
		.sin_family = AF_INET,
		.sin_port = htons((unsigned short)atoi(port ? port : "0")),
	};
	int one = 1, server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)signal(SIGPIPE, SIG_IGN);
	(void)setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(server, (struct sockaddr *)&here, sizeof(here)) != 0 || listen(server, 16) != 0) {
		perror("listener");
		return 1;
	}
	printf("listening on %s\n", port);
	(void)fflush(stdout);
	for (;;) {
		char line[128] = "";
		int fd = accept(server, NULL, NULL), number;

		if (fd < 0)
			continue;
		(void)read(fd, line, sizeof(line) - 1);
		if (sscanf(line, "exit %d", &number) == 1)
			return number;
		if (sscanf(line, "mask %d", &number) == 1)
			(void)signal(number, SIG_IGN);
		if (strncmp(line, "eat", 3) == 0)
			eat();
		answer(fd);
		(void)close(fd);
	}
}
