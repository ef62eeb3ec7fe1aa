/* SPDX-License-Identifier: MIT */
/* The other end of each connection, and the bytes that must arrive there. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "play.h"

#define CHUNK 8192u

static unsigned char byte_at(const struct flow *f, uint64_t position)
{
	uint64_t x = position * 31 + (position >> 8) * 7 + f->salt;

	return f->anything ? 0 : (unsigned char)x;
}

void flow_fill(const struct flow *f, uint64_t position, unsigned char *to,
	       unsigned int len)
{
	for (unsigned int i = 0; i < len; i++)
		to[i] = byte_at(f, position + i);
}

void flow_check(const struct flow *f, uint64_t position,
		const unsigned char *data, unsigned int len, const char *what)
{
	for (unsigned int i = 0; i < len; i++)
		CHECK(data[i] == byte_at(f, position + i),
		      "%s: byte %llu is %02x instead of %02x", what,
		      (unsigned long long)(position + i), data[i],
		      byte_at(f, position + i));
}

void peer_write(struct play *p, struct connection *c, unsigned int len)
{
	unsigned char data[CHUNK];
	ssize_t sent;

	len = len < CHUNK ? len : CHUNK;
	flow_fill(&c->in, c->in.written, data, len);
	sent = send(c->theirs, data, len, MSG_NOSIGNAL);
	if (sent > 0) {
		c->in.written += (uint64_t)sent;
		p->moves++;
		trace("peer of fd %d writes %zd", c->ours, sent);
	}
}

/* The peer reads once; false when there was nothing. */
static bool read_once(struct play *p, struct connection *c, unsigned int len)
{
	unsigned char data[CHUNK];
	ssize_t got = recv(c->theirs, data, len < CHUNK ? len : CHUNK, 0);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (got <= 0) {
		CHECK(!got || c->closed || c->broken,
		      "peer of fd %d: %s", c->ours, strerror(errno));
		CHECK(c->our_fin || c->closed || c->broken,
		      "peer of fd %d reads an end", c->ours);
		trace("peer of fd %d is at its end", c->ours);
		close(c->theirs);
		c->theirs = -1;
		c->their_fin = true;
		p->moves++;
		return false;
	}
	flow_check(&c->out, c->out.arrived, data, (unsigned int)got,
		   "at the peer");
	c->out.arrived += (uint64_t)got;
	p->moves++;
	return true;
}

void peer_read(struct play *p, struct connection *c, unsigned int len)
{
	read_once(p, c, len);
}

void peer_fin(struct connection *c)
{
	trace("peer of fd %d sends FIN", c->ours);
	shutdown(c->theirs, SHUT_WR);
	c->their_fin = true;
}

/* From now on our sends fail, and what was under way may be lost. */
void peer_close(struct play *p, struct connection *c, bool hard)
{
	struct linger linger = { .l_onoff = hard, .l_linger = 0 };

	trace("peer of fd %d closes%s", c->ours, hard ? " hard" : "");
	setsockopt(c->theirs, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(c->theirs);
	c->theirs = -1;
	c->broken = true;
	p->moves++;
}

/* Read all that there is, and close after the end. */
void peer_finish(struct play *p, struct connection *c)
{
	while (c->theirs >= 0 && read_once(p, c, CHUNK))
		;
}
