/* SPDX-License-Identifier: MIT */
/*
 * What the modules of the engine share and nobody else sees: from the bottom
 * up, as they call each other. None calls one that stands below it here.
 */
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

struct rtl_request;
struct rtl_segment;		/* outbox.c */

/* Where rtl_reap() writes events. Who adds one has seen to the room. */
struct rtl_events {
	int64_t *next;
	unsigned int count;
	unsigned int room;
};

/* What the kernel answers to one try of a request. */
struct rtl_completion {
	int result;
	int buffer;		/* of the pool, or RTL_NO_BUFFER */
	bool more;		/* others will follow for the same try */
};

#define RTL_NO_BUFFER (-1)

/* A request takes no more SQEs than this: its own, and its deadline's. */
#define RTL_MOST_SQES 2u

/* A completion adds no more events than this. */
#define RTL_MOST_EVENTS 2u

enum rtl_direction { RTL_NEITHER, RTL_IN, RTL_OUT };

/* What cancels a request, if its fd is closed (close.c). */
enum rtl_life {
	RTL_ENDS_BY_ITSELF,	/* nothing: the close waits for it */
	RTL_ENDS_AT_CLOSE,	/* rtl_close() */
	RTL_ENDS_AT_RELEASE,	/* rtl_release(): its owner has lost it */
};

/*
 * What there is to know of a kind of operation. Each has a file of its own,
 * and ring.c has the table; nobody else knows which there are. The functions
 * that may be NULL say what then happens.
 */
struct rtl_operation {
	uint8_t kernel_opcode;		/* that the kernel must know */
	enum rtl_direction direction;	/* of the bytes that it transfers */
	bool uses_pool;			/* -ENOBUFS: the pool is dry */
	enum rtl_life life;

	/* Make an SQE of the request; its user_data is set by the caller. */
	void (*prepare)(const struct rtl_ring *r, const struct rtl_request *req,
			struct io_uring_sqe *sqe);
	/* Until when this try may take. NULL: until the request's deadline. */
	int64_t (*limit)(const struct rtl_ring *r,
			 const struct rtl_request *req);
	/* A try has been answered: go on, or end with an event. */
	void (*complete)(struct rtl_ring *r, struct rtl_request *req,
			 const struct rtl_completion *c, struct rtl_events *e);
	/* No task need be woken for this answer. NULL: there is always one. */
	bool (*is_silent)(const struct rtl_request *req, int result);
	/* End it as soon as can be. NULL: rtl_request_cancel(). */
	void (*cancel)(struct rtl_ring *r, struct rtl_request *req);
	/* Another request on its fd has ended. NULL: that is all one to it. */
	void (*fd_changed)(struct rtl_ring *r, struct rtl_request *req);
};

enum rtl_state {
	RTL_QUEUED,	/* in the FIFO, the kernel has not seen it */
	RTL_WAITING_FOR_BUFFER, /* in another, because the pool had none */
	RTL_IN_FLIGHT,	/* the kernel has it, its answer is to come */
	RTL_PARKED,	/* waits for others, or has nothing to do */
	RTL_ENDED,	/* in a third FIFO, to be reported */
};

struct rtl_request {
	uint64_t id;
	const struct rtl_operation *op;
	struct rtl_request *next;	/* in a FIFO */
	struct rtl_request *fd_next;	/* other requests on the same fd */
	struct rtl_request **fd_link;
	struct rtl_request *cancel_next; /* others to be cancelled */
	struct rtl_request **cancel_link; /* NULL: not among them */
	enum rtl_state state;
	int fd;
	int result;
	unsigned int tries;
	bool cancelling;
	bool parted;			/* from its deadline: uring.c */
	int64_t deadline_ns;
	struct __kernel_timespec limit;	/* of a try, as the kernel reads it */
	union {
		struct {
			void *base;
			unsigned int len;
		} buf;
		unsigned int mask;
		bool wait_first;	/* accept.c */
		struct {
			uint64_t limit;
			uint64_t seen;
			bool released;	/* FIN or reset sent: may close */
			bool at_end;	/* nothing more will be discarded */
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

/* An id that is over and no request. Memory from malloc(), freed by reap.c. */
struct rtl_notice {
	struct rtl_notice *next;
	uint64_t id;
};

struct rtl_fifo {
	struct rtl_request *head;
	struct rtl_request **tail;
};

struct rtl_ring {
	int eventfd;
	struct rtl_counters stats;
	bool expedited;			/* close.c */

	/* table.c: open addressing by id, and the requests of each fd */
	struct rtl_request **table;
	size_t table_size;		/* a power of two */
	struct rtl_request **by_fd;
	size_t by_fd_size;

	/* pool.c */
	unsigned char *pool;
	unsigned char *trash;		/* where discarded input goes */
	uint16_t *lent;
	unsigned int lent_len;

	/* request.c */
	struct rtl_fifo queued;
	struct rtl_fifo waiting;
	struct rtl_fifo ended;
	struct rtl_notice *notices;
	struct rtl_request *cancels;

	/* uring.c */
	struct io_uring uring;
	struct io_uring_buf_ring *buf_ring;
};

/* clock.c */
#define RTL_NS_PER_SECOND INT64_C(1000000000)
int64_t rtl_now_ns(void);
struct __kernel_timespec rtl_timespec(int64_t ns);

/* table.c */
int rtl_table_init(struct rtl_ring *r);
void rtl_table_exit(struct rtl_ring *r);
int rtl_table_add(struct rtl_ring *r, uint64_t id,
		  const struct rtl_operation *op, int fd,
		  struct rtl_request **out);
struct rtl_request *rtl_table_find(const struct rtl_ring *r, uint64_t id);
void rtl_table_remove(struct rtl_ring *r, struct rtl_request *req);

/* pool.c */
#define RTL_TRASH_SIZE 65536u
void *rtl_map_pages(size_t len);
void rtl_unmap_pages(void *p, size_t len);
int rtl_pool_init(struct rtl_ring *r, unsigned int buffers,
		  unsigned int buffer_size);
void rtl_pool_exit(struct rtl_ring *r);
void rtl_pool_lend(struct rtl_ring *r, uint16_t buffer);

/* request.c */
void rtl_requests_init(struct rtl_ring *r);
int rtl_request_add(struct rtl_ring *r, uint64_t id,
		    const struct rtl_operation *op, int fd,
		    struct rtl_request **out);
void rtl_queue(struct rtl_ring *r, struct rtl_request *req);
struct rtl_request *rtl_unqueue_first(struct rtl_ring *r);
void rtl_unqueue(struct rtl_ring *r, struct rtl_request *req);
void rtl_queue_waiting(struct rtl_ring *r, uint64_t most);
void rtl_end(struct rtl_ring *r, struct rtl_request *req, int result);
void rtl_forget(struct rtl_ring *r, struct rtl_request *req);
void rtl_over(struct rtl_ring *r, struct rtl_request *req, int result,
	      struct rtl_events *e);
void rtl_event(struct rtl_events *e, uint64_t id, int64_t result, int64_t kind);
void rtl_report_ended(struct rtl_ring *r, struct rtl_events *e);
bool rtl_has_ended(const struct rtl_ring *r);
bool rtl_is_passing(int result);
bool rtl_is_interruption(int result);

/* How long to sleep at most when the kernel could not do all. */
#define RTL_SHORTAGE_NS (RTL_NS_PER_SECOND / 100)
bool rtl_is_shortage(int error);

bool rtl_is_past(const struct rtl_request *req);
void rtl_complete(struct rtl_ring *r, struct rtl_request *req,
		  const struct rtl_completion *c, struct rtl_events *e);
void rtl_request_complete(struct rtl_ring *r, struct rtl_request *req,
			  const struct rtl_completion *c,
			  struct rtl_events *e);
void rtl_want_cancel(struct rtl_ring *r, struct rtl_request *req);
void rtl_uncancel(struct rtl_request *req);
void rtl_request_cancel(struct rtl_ring *r, struct rtl_request *req);

/* A request that meets a passing shortage is issued again this many times. */
#define RTL_MAX_TRIES 64u

/* recv.c send.c accept.c connect.c poll.c outbox.c close.c */
extern const struct rtl_operation rtl_recv_operation;
extern const struct rtl_operation rtl_recv_into_operation;
extern const struct rtl_operation rtl_recv_multishot_operation;
extern const struct rtl_operation rtl_send_operation;
extern const struct rtl_operation rtl_accept_operation;
extern const struct rtl_operation rtl_connect_operation;
extern const struct rtl_operation rtl_poll_operation;
extern const struct rtl_operation rtl_outbox_operation;
extern const struct rtl_operation rtl_close_operation;

/* uring.c */
int rtl_uring_open(struct rtl_ring *r, unsigned int sq_entries,
		   unsigned int cq_entries, enum rtl_task_work work);
int rtl_uring_provide_pool(struct rtl_ring *r);
void rtl_uring_close(struct rtl_ring *r);
int rtl_uring_knows(struct rtl_ring *r, uint8_t kernel_opcode);
void rtl_uring_give_back(struct rtl_ring *r);
int rtl_uring_submit(struct rtl_ring *r);
int rtl_uring_arm(struct rtl_ring *r);
void rtl_uring_disarm(struct rtl_ring *r);
int rtl_uring_run(struct rtl_ring *r);
bool rtl_uring_may_have_completions(const struct rtl_ring *r);
bool rtl_uring_has_completions(const struct rtl_ring *r);
void rtl_uring_complete(struct rtl_ring *r, struct rtl_events *e);
void rtl_uring_complete_silent(struct rtl_ring *r);
int rtl_uring_wait(struct rtl_ring *r, int64_t timeout_ns);

#endif
