/* SPDX-License-Identifier: MIT */
/* A ring's birth and death. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

/*
 * One thread submits (SINGLE_ISSUER). Its completions never interrupt it; that
 * there are some is visible (TASKRUN_FLAG). One bad SQE must not hold up the
 * rest of its batch (SUBMIT_ALL).
 */
#define SETUP_FLAGS (IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_TASKRUN_FLAG | \
		     IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE)

static const unsigned int work_flags[] = {
	[RTL_DEFERRED] = IORING_SETUP_DEFER_TASKRUN,
	[RTL_COOPERATIVE] = IORING_SETUP_COOP_TASKRUN,
};

static const uint8_t kernel_opcode[] = {
	[RTL_RECV] = IORING_OP_RECV,
	[RTL_RECV_INTO] = IORING_OP_RECV,
	[RTL_SEND] = IORING_OP_SEND,
	[RTL_ACCEPT] = IORING_OP_ACCEPT,
	[RTL_CONNECT] = IORING_OP_CONNECT,
	[RTL_POLL] = IORING_OP_POLL_ADD,
	[RTL_CLOSE] = IORING_OP_LINK_TIMEOUT,
	[RTL_RECV_MULTISHOT] = IORING_OP_RECV,
	[RTL_OUTBOX] = IORING_OP_SEND,
};

static int open_uring(struct rtl_ring *r, unsigned int sq_entries,
		      unsigned int cq_entries, enum rtl_task_work work)
{
	struct io_uring_params params = {
		.flags = SETUP_FLAGS | work_flags[work],
		.cq_entries = cq_entries,
	};
	int ret;

	ret = io_uring_queue_init_params(sq_entries, &r->uring, &params);
	if (ret)
		return ret;
	r->stats.sq_entries = params.sq_entries;
	r->stats.cq_entries = params.cq_entries;
	r->stats.features = params.features;
	return 0;
}

/* The eventfd is the caller's; it must stay open as long as the ring. */
int rtl_open(struct rtl_ring **out, int eventfd, unsigned int sq_entries,
	     unsigned int cq_entries, unsigned int buffers,
	     unsigned int buffer_size, enum rtl_task_work work)
{
	struct rtl_ring *r;
	int ret;

	*out = NULL;
	r = calloc(1, sizeof(*r));
	if (!r)
		return -ENOMEM;
	rtl_fifo_init(&r->queued);
	rtl_fifo_init(&r->waiting);
	rtl_fifo_init(&r->ended);
	r->eventfd = eventfd;
	ret = open_uring(r, sq_entries, cq_entries, work);
	if (ret)
		goto no_uring;
	ret = rtl_table_init(r);
	if (ret)
		goto no_table;
	ret = io_uring_register_eventfd(&r->uring, eventfd);
	if (ret)
		goto no_pool;
	io_uring_cq_eventfd_toggle(&r->uring, false);
	ret = rtl_pool_init(r, buffers, buffer_size);
	if (ret)
		goto no_pool;
	*out = r;
	return 0;

no_pool:
	rtl_table_exit(r);
no_table:
	io_uring_queue_exit(&r->uring);
no_uring:
	free(r);
	return ret;
}

/*
 * io_uring_queue_exit(3) does not wait for requests, so a ring that has some
 * must not be freed: the kernel may still write to its buffers. Nor one that
 * has not told yet which borrowed segments are over.
 */
int rtl_free(struct rtl_ring *r)
{
	if (r->stats.in_flight || r->returned)
		return -EBUSY;
	io_uring_queue_exit(&r->uring);
	rtl_pool_exit(r);
	rtl_table_exit(r);
	free(r);
	return 0;
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

/* 1, 0, or -errno: does this kernel know the opcode? */
int rtl_supports(struct rtl_ring *r, enum rtl_opcode opcode)
{
	struct io_uring_probe *probe = io_uring_get_probe_ring(&r->uring);
	int known;

	if (!probe)
		return -ENOMEM;
	known = io_uring_opcode_supported(probe, kernel_opcode[opcode]);
	io_uring_free_probe(probe);
	return known;
}
