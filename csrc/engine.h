/* SPDX-License-Identifier: MIT */
/*
 * The completion engine: what lies between Python and io_uring.
 *
 * Rules, and the module that keeps each:
 *
 *  1. A request is in the table from the call that makes it until its
 *     terminal CQE (table.c). The caller chooses its id, which is its
 *     user_data, and never uses an id again.
 *  2. A call never fails because the submission queue is full. Requests wait
 *     in a FIFO until rtl_submit() finds room for them (submit.c).
 *  3. Buffers of the receive pool are the kernel's, except those lent to the
 *     caller by rtl_reap(), which go back at the next rtl_reap() or
 *     rtl_submit() (pool.c).
 *  4. What was put into an outbox is sent in order, one send at a time, and
 *     a send that ends short goes on where it ended (outbox.c).
 *  5. A file descriptor handed to rtl_close() and released is the engine's,
 *     which closes it after the last request on it has ended. Until it is
 *     released it is the caller's. So nobody else ever closes it (close.c).
 *  6. Only the thread that made a ring may use it.
 *  7. A cancellation or a deadline that meets its request on the way between
 *     two queues of the kernel is lost. So their answers are looked at, and
 *     they are repeated until the request ends (reap.c).
 *
 * Functions return 0, a count, or -errno.
 */
#ifndef RTL_ENGINE_H
#define RTL_ENGINE_H

#include <stdint.h>

struct rtl_ring;

enum rtl_opcode {
	RTL_RECV = 1,		/* into a buffer of the pool */
	RTL_RECV_INTO,		/* into the caller's memory */
	RTL_SEND,
	RTL_ACCEPT,
	RTL_CONNECT,
	RTL_POLL,
	RTL_CLOSE,		/* discard input, then close(2); the result
				 * is 1 if TCP had not acknowledged all */
	RTL_RECV_MULTISHOT,		/* receive into the pool until cancelled */
	RTL_OUTBOX,		/* send what is put into it */
};

/* Who runs what the kernel has to do to complete a request, and when. */
enum rtl_task_work {
	RTL_DEFERRED,		/* rtl_reap() and rtl_wait(), when called */
	RTL_COOPERATIVE,	/* the thread's next system call, whichever */
};

struct rtl_counters {
	uint64_t submitted;	/* SQEs the kernel took */
	uint64_t completed;	/* CQEs seen */
	uint64_t retries;	/* requests issued again (-ENOBUFS, -EAGAIN) */
	uint64_t cq_overflows;	/* times the CQ was seen overflown */
	uint64_t in_flight;	/* requests in the table */
	uint64_t idle;		/* outboxes among them that are empty */
	uint64_t control_in_flight;	/* cancellations and deadlines out */
	uint64_t bytes_sent;
	uint64_t bytes_received;
	uint64_t buffers_lent;
	uint64_t buffers;
	uint64_t buffer_size;
	uint64_t sq_entries;
	uint64_t cq_entries;
	uint64_t features;	/* IORING_FEAT_* */
};

/*
 * What rtl_reap() reports: events of RTL_EVENT_FIELDS numbers. The third is the buffer of
 * the pool that has what was received, RTL_OVER when the request is over, or
 * RTL_PROGRESS when an outbox has become as empty as rtl_outbox_notify_below() asked for.
 */
enum rtl_event_field { RTL_ID, RTL_RESULT, RTL_KIND, RTL_EVENT_FIELDS };

#define RTL_OVER (-1)
#define RTL_PROGRESS (-2)

#define RTL_NO_DEADLINE (-1)

int rtl_open(struct rtl_ring **out, int eventfd, unsigned int sq_entries,
	     unsigned int cq_entries, unsigned int buffers,
	     unsigned int buffer_size, enum rtl_task_work work);
int rtl_free(struct rtl_ring *r);

void *rtl_pool(const struct rtl_ring *r);
void rtl_counters(const struct rtl_ring *r, struct rtl_counters *out);
uint64_t rtl_moved(const struct rtl_ring *r);
int rtl_supports(struct rtl_ring *r, enum rtl_opcode opcode);

int rtl_recv(struct rtl_ring *r, uint64_t id, int fd, unsigned int len);
int rtl_recv_into(struct rtl_ring *r, uint64_t id, int fd, void *buf,
		  unsigned int len);
int rtl_send(struct rtl_ring *r, uint64_t id, int fd, const void *buf,
	     unsigned int len, int64_t deadline_ns);
int rtl_accept(struct rtl_ring *r, uint64_t id, int fd);
int rtl_connect(struct rtl_ring *r, uint64_t id, int fd, const void *address,
		unsigned int len);
int rtl_poll(struct rtl_ring *r, uint64_t id, int fd, unsigned int mask,
	     int64_t deadline_ns);
int rtl_close(struct rtl_ring *r, uint64_t id, int fd, uint64_t discard_limit,
	      int64_t deadline_ns);
int rtl_recv_multishot(struct rtl_ring *r, uint64_t id, int fd);
int rtl_outbox_open(struct rtl_ring *r, uint64_t id, int fd);
int64_t rtl_outbox_write(struct rtl_ring *r, uint64_t id, const void *buf,
		unsigned int len, uint64_t segment_id);
int64_t rtl_outbox_notify_below(struct rtl_ring *r, uint64_t id, uint64_t below);
int rtl_outbox_shutdown(struct rtl_ring *r, uint64_t id, int64_t deadline_ns);
int rtl_release(struct rtl_ring *r, uint64_t close_id);
void rtl_expedite_close(struct rtl_ring *r);
void rtl_fail(struct rtl_ring *r);
int rtl_cancel(struct rtl_ring *r, uint64_t id);

int rtl_submit(struct rtl_ring *r);
int rtl_arm(struct rtl_ring *r);
void rtl_busy_poll(const struct rtl_ring *r, int64_t ns);
int rtl_ready(const struct rtl_ring *r);
int rtl_reap(struct rtl_ring *r, int64_t *events, unsigned int max_events);
int rtl_wait(struct rtl_ring *r, int64_t timeout_ns);

int rtl_reset(int fd);
int rtl_close_now(int fd);

#endif
