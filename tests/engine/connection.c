/* SPDX-License-Identifier: MIT */
/* The two ends of a connection, and who closes them. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "faults.h"
#include "play.h"

/* Descriptors are spread out up to here. */
#define MOST_FDS 900u

/* Move a descriptor to where the engine's array by fd may have to grow. */
static int spread(struct play *p, int fd)
{
	bool far = one_in(&p->random, 3);
	unsigned int from = far ? below(&p->random, MOST_FDS) : 0;
	int moved = fcntl(fd, F_DUPFD_CLOEXEC, (int)from);

	CHECK(moved >= 0, "harness: F_DUPFD: %s", strerror(errno));
	close(fd);
	return moved;
}

void listener_open(struct play *p)
{
	socklen_t len = sizeof(p->address);

	p->address.sin_family = AF_INET;
	p->address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	p->address.sin_port = 0;
	p->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(!bind(p->listener, (struct sockaddr *)&p->address, len) &&
	      !listen(p->listener, 64) &&
	      !getsockname(p->listener, (struct sockaddr *)&p->address, &len),
	      "harness: listener: %s", strerror(errno));
}

/*
 * Segments far smaller than the buffers: a window as small as a segment
 * opens by timers only.
 */
#define SEGMENT_SIZE 1000

static int tcp_socket(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int size = SEGMENT_SIZE, on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &size, sizeof(size));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return fd;
}

static void tcp_pair(int ends[2])
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	socklen_t len = sizeof(address);
	int listener = tcp_socket();

	ends[0] = tcp_socket();
	CHECK(!bind(listener, (struct sockaddr *)&address, len) &&
	      !listen(listener, 1) &&
	      !getsockname(listener, (struct sockaddr *)&address, &len) &&
	      !connect(ends[0], (struct sockaddr *)&address, len),
	      "harness: connect: %s", strerror(errno));
	ends[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	CHECK(ends[1] >= 0, "harness: accept: %s", strerror(errno));
	close(listener);
}

/* Small, so that sends wait and end short. */
static void limit_buffer(struct play *p, int fd, int which)
{
	int size = 2048 << below(&p->random, 5);

	setsockopt(fd, SOL_SOCKET, which, &size, sizeof(size));
}

void connection_open(struct play *p, struct connection *c)
{
	int ends[2];
	bool anything = one_in(&p->random, 4);

	memset(c, 0, sizeof(*c));
	c->tcp = !one_in(&p->random, 3);
	if (c->tcp)
		tcp_pair(ends);
	else
		CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends),
		      "harness: socketpair: %s", strerror(errno));
	limit_buffer(p, ends[0], SO_SNDBUF);
	if (one_in(&p->random, 2))
		limit_buffer(p, ends[1], SO_RCVBUF);
	c->ours = spread(p, ends[0]);
	c->theirs = ends[1];
	fcntl(c->theirs, F_SETFL, O_NONBLOCK);
	c->open = true;
	c->out.salt = below(&p->random, 256);
	c->in.salt = below(&p->random, 256);
	c->out.anything = c->in.anything = anything;
	trace("open %s fd %d%s", c->tcp ? "tcp" : "unix", c->ours,
	      anything ? ", shared" : "");
}

/* Both ends are closed: what arrived is all there was, or a prefix of it. */
void connection_end(struct connection *c)
{
	const struct flow *f = &c->out;

	CHECK(c->closed, "fd %d was never closed", c->ours);
	CHECK(f->arrived <= f->written, "fd %d: %llu of %llu bytes arrived",
	      c->ours, (unsigned long long)f->arrived,
	      (unsigned long long)f->written);
	CHECK(c->broken || f->cut || f->arrived == f->written,
	      "fd %d: only %llu of %llu bytes arrived", c->ours,
	      (unsigned long long)f->arrived, (unsigned long long)f->written);
	c->open = false;
}

static bool has_ended(const struct connection *c)
{
	return c->closed && c->closing->over && c->theirs < 0;
}

/* A free one, or one that is over; NULL: all are in use. */
struct connection *connection_slot(struct play *p)
{
	for (unsigned int i = 0; i < MAX_CONNECTIONS; i++) {
		struct connection *c = &p->connections[i];

		if (c->open && has_ended(c) && !p->n_loans)
			connection_end(c);
		if (!c->open)
			return c;
	}
	return NULL;
}

bool connection_is_used(const struct play *p, const struct connection *c)
{
	for (unsigned int i = 0; i < p->n_requests; i++)
		if (p->requests[i].kind == REQUEST && !p->requests[i].over &&
		    p->requests[i].connection == c)
			return true;
	return false;
}

/* Let the engine close it: our FIN, or a reset that cuts an outbox, is out. */
void connection_release(struct play *p, struct connection *c)
{
	int error;

	if (c->outbox || one_in(&p->random, 4)) {
		c->broken = true;
		error = ENGINE(rtl_reset, c->ours);
		CHECK(!error || c->their_fin || c->theirs < 0,
		      "reset: %s", strerror(-error));
	} else {
		shutdown(c->ours, SHUT_WR);
	}
	c->our_fin = true;
	c->released = true;
	trace("release fd %d, %s", c->ours, c->broken ? "broken" : "FIN");
	error = ENGINE(rtl_release, p->ring, c->closing->id);
	CHECK(!error, "release: %s", strerror(-error));
	if (c->outbox)
		c->outbox->cancelled = c->out.cut = true;
}

static struct connection *given_away(struct play *p, int fd)
{
	for (unsigned int i = 0; i < MAX_CONNECTIONS; i++) {
		struct connection *c = &p->connections[i];

		if (c->open && c->closing && !c->closed && c->ours == fd)
			return c;
	}
	return NULL;
}

void connection_closed_by_engine(struct play *p, int fd, int result)
{
	struct connection *c = given_away(p, fd);

	CHECK(c, "the engine closes fd %d, which is not its own", fd);
	CHECK(!result, "the engine closes fd %d: %s", fd, strerror(errno));
	CHECK(c->released, "fd %d is closed before its release", fd);
	c->closed = true;
}
