/* SPDX-License-Identifier: MIT */
/* What the modules of the engine share and nobody else sees. */
#ifndef RTL_INTERNAL_H
#define RTL_INTERNAL_H

#include <liburing.h>
#include <stdbool.h>
#include <stddef.h>

#include "engine.h"

/* Older headers lack it; the kernel floor (6.1) has it. */
#ifndef IORING_SETUP_SUBMIT_ALL
#define IORING_SETUP_SUBMIT_ALL (1U << 7)
#endif

enum rtl_state {
	RTL_QUEUED,	/* in the FIFO, the kernel has not seen it */
	RTL_WAITING_FOR_BUFFER,	/* in another, because the pool had no buffer */
	RTL_IN_FLIGHT,	/* an SQE is published, its CQE is to come */
	RTL_PARKED,	/* waits for others, or has nothing to do: no SQE out */
	RTL_ENDED,	/* among the local completions, to be reported */
};

struct rtl_segment;		/* outbox.c */

struct rtl_request {
	uint64_t id;
	struct rtl_request *next;	/* in the FIFO or local completions */
	struct rtl_request *fd_next;	/* other requests on the same fd */
	struct rtl_request **fd_link;
	struct rtl_request *cancel_next; /* others to be cancelled */
	struct rtl_request **cancel_link; /* NULL: not among them */
	enum rtl_opcode opcode;
	enum rtl_state state;
	int fd;
	int result;
	unsigned int tries;
	bool cancelling;
	bool timed;			/* deadline holds a time */
	struct __kernel_timespec deadline;
	union {
		struct {
			void *base;
			unsigned int len;
		} buf;
		unsigned int mask;
		struct {
			uint64_t limit;
			uint64_t seen;
			bool released;	/* FIN or reset sent: may close */
			bool at_end;	/* nothing more will be discarded */
			struct __kernel_timespec until;
		} close;
		struct {
			struct rtl_segment *head;
			struct rtl_segment *last;
			uint64_t pending;
			uint64_t below;	/* report when pending is; 0: don't */
			bool shutting_down;
		} out;
	} u;
};

/*
 * user_data of what acts upon a request: a cancellation, its deadline. Ids
 * are smaller.
 */
#define RTL_CONTROL (UINT64_C(1) << 63)

/* A request that meets a passing shortage is issued again this many times. */
#define RTL_MAX_TRIES 64u

#define RTL_NS_PER_SECOND INT64_C(1000000000)

struct rtl_fifo {
	struct rtl_request *head;
	struct rtl_request **tail;
};

struct rtl_ring {
	struct io_uring uring;
	int eventfd;
	struct rtl_counters stats;

	bool expedited;			/* close.c */

	/* table.c: open addressing by id, and the requests of each fd */
	struct rtl_request **table;
	size_t table_size;		/* a power of two */
	struct rtl_request **by_fd;
	size_t by_fd_size;

	/* submit.c */
	struct rtl_fifo queued;
	struct rtl_fifo waiting;
	struct rtl_fifo ended;
	struct rtl_request *cancels;

	/* outbox.c */
	struct rtl_segment *returned;	/* sent, and to be reported */

	/* pool.c */
	struct io_uring_buf_ring *buf_ring;
	unsigned char *pool;
	unsigned char *trash;		/* where discarded input goes */
	uint16_t *lent;
	unsigned int lent_len;
};

/* table.c */
int rtl_table_init(struct rtl_ring *r);
void rtl_table_exit(struct rtl_ring *r);
int rtl_table_add(struct rtl_ring *r, uint64_t id, enum rtl_opcode opcode,
		  int fd, struct rtl_request **out);
struct rtl_request *rtl_table_find(const struct rtl_ring *r, uint64_t id);
void rtl_table_remove(struct rtl_ring *r, struct rtl_request *req);

/* submit.c */
void rtl_fifo_init(struct rtl_fifo *f);
void rtl_fifo_push(struct rtl_fifo *f, struct rtl_request *req);
struct rtl_request *rtl_fifo_pop(struct rtl_fifo *f);
void rtl_fifo_remove(struct rtl_fifo *f, struct rtl_request *req);
void rtl_queue(struct rtl_ring *r, struct rtl_request *req);
void rtl_wait_for_buffer(struct rtl_ring *r, struct rtl_request *req);
void rtl_end(struct rtl_ring *r, struct rtl_request *req, int result);
void rtl_want_cancel(struct rtl_ring *r, struct rtl_request *req);
void rtl_uncancel(struct rtl_request *req);
void rtl_set_deadline(struct rtl_request *req, int64_t deadline_ns);

/* pool.c */
int rtl_pool_init(struct rtl_ring *r, unsigned int buffers,
		  unsigned int buffer_size);
void rtl_pool_exit(struct rtl_ring *r);
void rtl_pool_lend(struct rtl_ring *r, uint16_t bid);
void rtl_pool_take_back(struct rtl_ring *r);

/* reap.c */
bool rtl_is_passing(int result);
unsigned int rtl_event(int64_t *event, uint64_t id, int64_t result, int64_t kind);

/* outbox.c */
void rtl_outbox_prepare(const struct rtl_request *req, struct io_uring_sqe *sqe);
unsigned int rtl_outbox_sent(struct rtl_ring *r, struct rtl_request *req,
			     int result, int64_t *event);
bool rtl_outbox_is_silent(const struct rtl_ring *r, uint64_t id, int result);
void rtl_outbox_cancel(struct rtl_ring *r, struct rtl_request *req);
unsigned int rtl_outbox_report(struct rtl_ring *r, int64_t *events,
			       unsigned int max_events);

/* close.c */
#define RTL_TRASH_SIZE 65536u
int64_t rtl_now_ns(void);
bool rtl_is_past(const struct rtl_request *req);
struct __kernel_timespec *rtl_close_limit(const struct rtl_ring *r,
					  struct rtl_request *req);
void rtl_close_cancel(struct rtl_ring *r, struct rtl_request *req);
void rtl_close_step(struct rtl_ring *r, struct rtl_request *req);
void rtl_close_discarded(struct rtl_ring *r, struct rtl_request *req, int result);
void rtl_close_fd_event(struct rtl_ring *r, int fd);

#endif
