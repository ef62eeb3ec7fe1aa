/* SPDX-License-Identifier: MIT */
/* A ring's birth and death, and the tables of operations and backends. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

static const struct rtl_operation *const operations[] = {
	[RTL_RECV] = &rtl_recv_operation,
	[RTL_RECV_INTO] = &rtl_recv_into_operation,
	[RTL_SEND] = &rtl_send_operation,
	[RTL_ACCEPT] = &rtl_accept_operation,
	[RTL_CONNECT] = &rtl_connect_operation,
	[RTL_POLL] = &rtl_poll_operation,
	[RTL_CLOSE] = &rtl_close_operation,
	[RTL_RECV_MULTISHOT] = &rtl_recv_multishot_operation,
	[RTL_OUTBOX] = &rtl_outbox_operation,
};

static const struct rtl_backend *const backends[] = {
	[RTL_DEFERRED] = &rtl_uring_backend,
	[RTL_COOPERATIVE] = &rtl_uring_backend,
	[RTL_EPOLL] = &rtl_epoll_backend,
};

int rtl_open(struct rtl_ring **out, int eventfd, unsigned int sq_entries,
	     unsigned int cq_entries, unsigned int buffers,
	     unsigned int buffer_size, enum rtl_engine engine)
{
	struct rtl_ring *r;
	int ret;

	*out = NULL;
	if (sq_entries < RTL_MOST_SQES)
		return -EINVAL;
	r = calloc(1, sizeof(*r));
	if (!r)
		return -ENOMEM;
	r->backend = backends[engine];
	r->eventfd = eventfd;
	rtl_requests_init(r);
	ret = rtl_table_init(r);
	if (ret)
		goto no_table;
	ret = rtl_pool_init(r, buffers, buffer_size);
	if (ret)
		goto no_pool;
	ret = r->backend->open(r, sq_entries, cq_entries, engine);
	if (ret)
		goto no_backend;
	*out = r;
	return 0;

no_backend:
	rtl_pool_exit(r);
no_pool:
	rtl_table_exit(r);
no_table:
	free(r);
	return ret;
}

/*
 * io_uring_queue_exit(3) does not wait for requests, so a ring that has some
 * must not be freed: the kernel may still write to its buffers. Nor one that
 * has not told yet which borrowed segments are over.
 */
int rtl_free(struct rtl_ring **ring)
{
	struct rtl_ring *r = *ring;

	if (!r)
		return 0;
	if (r->stats.in_flight || r->notices)
		return -EBUSY;
	*ring = NULL;
	r->backend->close(r);
	rtl_pool_exit(r);
	rtl_table_exit(r);
	free(r);
	return 0;
}

void rtl_abandon(struct rtl_ring **ring)
{
	struct rtl_ring *r = *ring;

	*ring = NULL;
	if (!r)
		return;
	r->backend->discard(r);
	r->backend->close(r);
}

void *rtl_pool(const struct rtl_ring *r)
{
	return r->pool;
}

void rtl_counters(const struct rtl_ring *r, struct rtl_counters *out)
{
	*out = r->stats;
	out->buffers_lent = r->lent_len;
}

uint64_t rtl_moved(const struct rtl_ring *r)
{
	return r->stats.bytes_sent + r->stats.bytes_received;
}

int rtl_supports(struct rtl_ring *r, enum rtl_opcode opcode)
{
	return r->backend->knows(r, operations[opcode]->kernel_opcode);
}
