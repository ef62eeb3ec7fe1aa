/* SPDX-License-Identifier: MIT */
/*
 * The model's requests and borrowed segments.
 *
 * Memory that the engine has given back is spoilt at once, and kept to the
 * end of the play: what is sent from it is wrong at the peer, and what is
 * written into it is found.
 */
#include <stdlib.h>
#include <string.h>

#include "play.h"

#define SPOILT 0xeeu

static const char *const names[] = {
	[RTL_RECV] = "recv",
	[RTL_RECV_INTO] = "recv_into",
	[RTL_SEND] = "send",
	[RTL_ACCEPT] = "accept",
	[RTL_CONNECT] = "connect",
	[RTL_POLL] = "poll",
	[RTL_CLOSE] = "close",
	[RTL_RECV_MULTISHOT] = "recv_multishot",
	[RTL_OUTBOX] = "outbox",
};

const char *opcode_name(enum rtl_opcode opcode)
{
	return names[opcode];
}

/* Ids grow, and often by what makes them collide in a table by id. */
static uint64_t next_id(struct play *p)
{
	static const uint64_t strides[] = { 1, 1, 1, 255, 256, 256, 512 };

	p->last_id += strides[below(&p->random,
				    sizeof(strides) / sizeof(*strides))];
	return p->last_id;
}

struct request *request_new(struct play *p, enum ownership kind,
			    enum rtl_opcode opcode, struct connection *c)
{
	struct request *q = &p->requests[p->n_requests++];

	CHECK(p->n_requests < MAX_REQUESTS, "harness: too many requests");
	memset(q, 0, sizeof(*q));
	q->id = next_id(p);
	q->kind = kind;
	q->opcode = opcode;
	q->connection = c;
	q->fd = c ? c->ours : -1;
	q->deadline = RTL_NO_DEADLINE;
	return q;
}

/* The call failed: the engine has never heard of the newest request. */
void request_forget(struct play *p, struct request *q)
{
	CHECK(q == &p->requests[p->n_requests - 1], "harness: not the newest");
	free(q->memory);
	p->n_requests--;
}

void request_over(struct request *q)
{
	CHECK(!q->over, "%s %llu ends twice", opcode_name(q->opcode),
	      (unsigned long long)q->id);
	q->over = true;
	if (q->memory)
		memset(q->memory, SPOILT, q->len);
}

struct request *request_find(struct play *p, uint64_t id)
{
	unsigned int low = 0, high = p->n_requests;

	while (low < high) {
		unsigned int middle = (low + high) / 2;

		if (p->requests[middle].id < id)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == p->n_requests || p->requests[low].id != id)
		return NULL;
	return &p->requests[low];
}

unsigned int requests_live(const struct play *p)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < p->n_requests; i++)
		n += p->requests[i].kind == REQUEST && !p->requests[i].over;
	return n;
}

static void check_spoilt(const struct request *q)
{
	for (unsigned int i = 0; i < q->len; i++)
		CHECK(q->memory[i] == SPOILT,
		      "%s %llu: memory was written to after the end",
		      opcode_name(q->opcode), (unsigned long long)q->id);
}

void requests_free(struct play *p)
{
	for (unsigned int i = 0; i < p->n_requests; i++) {
		struct request *q = &p->requests[i];

		CHECK(q->over, "%s %llu has never ended",
		      opcode_name(q->opcode), (unsigned long long)q->id);
		if (q->memory)
			check_spoilt(q);
		free(q->memory);
	}
	p->n_requests = 0;
}
