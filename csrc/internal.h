/* SPDX-License-Identifier: MIT */
/*
 * What the modules of the engine share and nobody else sees: from the bottom
 * up, as they call each other. None calls one that stands below it here.
 */
#ifndef RTL_INTERNAL_H
#define RTL_INTERNAL_H

#include <errno.h>
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

/* Where rtl_reap() writes events. Whoever adds one has seen to the room. */
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
	uint8_t kernel_opcode;		/* that io_uring must know */
	unsigned int awaits;		/* poll(2): when epoll has it tried */
	enum rtl_direction direction;	/* of the bytes that it transfers */
	bool uses_pool;			/* -ENOBUFS: the pool is dry */
	enum rtl_life life;

	/* io_uring: make an SQE; its user_data is set by the caller. */
	void (*prepare)(const struct rtl_ring *r, const struct rtl_request *req,
			struct io_uring_sqe *sqe);
	/*
	 * epoll: make the system call now, without blocking. Returns the
	 * result, -EAGAIN if it is too early, and fills in what else there is.
	 */
	int (*attempt)(struct rtl_ring *r, struct rtl_request *req,
		       struct rtl_completion *c);
	/* Until when this try may take. NULL: until the request's deadline. */
	int64_t (*limit)(const struct rtl_ring *r,
			 const struct rtl_request *req);
	/* A try has been answered: go on, or end with an event. */
	void (*complete)(struct rtl_ring *r, struct rtl_request *req,
			 const struct rtl_completion *c, struct rtl_events *e);
	/* No task need be woken for this answer. NULL: there is always one. */
	bool (*is_silent)(const struct rtl_request *req, int result);
	/* Nobody will hear of this answer. NULL: it has brought nothing. */
	void (*discard)(const struct rtl_request *req, int result);
	/* End it as soon as can be. NULL: rtl_request_cancel(). */
	void (*cancel)(struct rtl_ring *r, struct rtl_request *req);
	/* Another request on its fd has ended. NULL: that is all one to it. */
	void (*fd_changed)(struct rtl_ring *r, struct rtl_request *req);
};

enum rtl_state {
	RTL_QUEUED,	/* in the FIFO, the kernel has not seen it */
	RTL_WAITING_FOR_BUFFER, /* in another, because the pool had none */
	RTL_IN_FLIGHT,	/* the backend has it, its answer is to come */
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
	unsigned int awaits;		/* poll(2): what is to become true */
	unsigned int tries;
	bool cancelling;
	bool parted;			/* from its deadline: uring.c */
	int64_t deadline_ns;
	union {				/* what the backend notes */
		struct {
			struct __kernel_timespec limit;	/* from a try's start */
		} uring;
		struct {
			struct rtl_completion answer;
			bool answered;
			bool pending;	/* in the FIFO */
			bool timed;	/* among the deadlines, until: */
			int64_t limit_ns;
			struct rtl_request *child;	/* deadlines.c */
			struct rtl_request *sibling;
			struct rtl_request **link;
		} epoll;
	} at;
	union {
		struct {
			void *base;
			unsigned int len;
			unsigned int done;	/* by tries that went before */
		} buf;
		bool wait_first;	/* accept.c */
		struct {
			uint64_t limit;
			uint64_t seen;
			bool released;	/* FIN or reset sent: may close */
			bool at_eof;	/* the peer's FIN has come */
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

/* What there is to know of a descriptor's number. */
struct rtl_fd {
	struct rtl_request *requests;
	unsigned int minding;	/* of them, those with fd_changed() */
	uint32_t watched;	/* what epoll looks at it for; 0: it does not */
};

/*
 * How requests meet the kernel: uring.c or epoll.c. Functions that return int
 * return 0 or a count, or -errno.
 */
struct rtl_backend {
	int (*open)(struct rtl_ring *r, unsigned int sq_entries,
		    unsigned int cq_entries, enum rtl_engine engine);
	void (*close)(struct rtl_ring *r);
	int (*knows)(struct rtl_ring *r, uint8_t kernel_opcode);
	/* The descriptor to sleep on when the ring is armed. */
	int (*sleep_fd)(const struct rtl_ring *r);

	/* The lent buffers are free again. */
	void (*give_back)(struct rtl_ring *r);
	/* Take what is queued, and the cancellations. */
	int (*submit)(struct rtl_ring *r);
	/* No request uses the number any more; its file is still open. */
	void (*leave_fd)(struct rtl_ring *r, int fd);

	/* From now on a completion wakes who sleeps; no longer. */
	int (*arm)(struct rtl_ring *r);
	void (*disarm)(struct rtl_ring *r);
	/* Have the kernel complete what it can now. */
	int (*run)(struct rtl_ring *r);
	bool (*has_completions)(const struct rtl_ring *r);
	/* True if run() may find some. */
	bool (*may_have_completions)(struct rtl_ring *r);
	/* Complete requests while there is room for their events. */
	void (*complete)(struct rtl_ring *r, struct rtl_events *e);
	/* From the first on, until somebody has to be told of one. */
	void (*complete_silent)(struct rtl_ring *r);
	/* Throw away those that are there: the ring has failed. */
	void (*discard)(struct rtl_ring *r);
	/* Sleep until there may be completions: 0, -ETIME or -EINTR. */
	int (*wait)(struct rtl_ring *r, int64_t timeout_ns);
};

struct rtl_ring {
	const struct rtl_backend *backend;
	int eventfd;
	struct rtl_counters stats;
	bool expedited;			/* close.c */

	/* table.c: open addressing by id, and the requests of each fd */
	struct rtl_request **table;
	size_t table_size;		/* a power of two */
	struct rtl_fd *fds;
	size_t fds_size;

	/* pool.c */
	unsigned char *pool;
	unsigned char *trash;		/* where discarded input goes */
	uint16_t *lent;
	unsigned int lent_len;
	uint16_t *free;			/* of epoll.c */
	unsigned int free_len;

	/* request.c */
	struct rtl_fifo queued;
	struct rtl_fifo waiting;
	struct rtl_fifo ended;
	struct rtl_notice *notices;
	struct rtl_request *cancels;

	/* uring.c */
	struct io_uring uring;
	struct io_uring_buf_ring *buf_ring;

	/* epoll.c */
	struct {
		int fd;
		int timer;
		int64_t timer_ns;	/* when that goes off */
		bool looked;		/* since the last submit() */
		bool signalled;		/* the eventfd was readable */
		struct rtl_fifo pending;
	} epoll;

	/* deadlines.c */
	struct rtl_request *first_to_expire;
};

/* What a system call has returned: its result, or -errno. */
static inline int rtl_result(ssize_t returned)
{
	return returned < 0 ? -errno : (int)returned;
}

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
int rtl_pool_take(struct rtl_ring *r);
void rtl_pool_put(struct rtl_ring *r, uint16_t buffer);

/* deadlines.c */
void rtl_deadline_set(struct rtl_ring *r, struct rtl_request *req, int64_t ns);
void rtl_deadline_clear(struct rtl_ring *r, struct rtl_request *req);

/* request.c */
void rtl_fifo_init(struct rtl_fifo *f);
void rtl_fifo_push(struct rtl_fifo *f, struct rtl_request *req);
struct rtl_request *rtl_fifo_pop(struct rtl_fifo *f);
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
bool rtl_is_cut_off(const struct rtl_request *req, int result);

/* How long to sleep at most when the kernel could not do all. */
#define RTL_SHORTAGE_NS (RTL_NS_PER_SECOND / 100)
bool rtl_is_shortage(int error);

bool rtl_is_past(const struct rtl_request *req);
int64_t rtl_limit_of(const struct rtl_ring *r, const struct rtl_request *req);
void rtl_complete(struct rtl_ring *r, struct rtl_request *req,
		  const struct rtl_completion *c, struct rtl_events *e);
void rtl_discard(const struct rtl_request *req, int result);
void rtl_request_complete(struct rtl_ring *r, struct rtl_request *req,
			  const struct rtl_completion *c,
			  struct rtl_events *e);
void rtl_want_cancel(struct rtl_ring *r, struct rtl_request *req);
void rtl_uncancel(struct rtl_request *req);
void rtl_request_cancel(struct rtl_ring *r, struct rtl_request *req);

/* A request that meets a passing shortage is issued again this many times. */
#define RTL_MAX_TRIES 64u

/* accept_now.c */
int rtl_accept_now(int fd);

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

/* uring.c, epoll.c */
extern const struct rtl_backend rtl_uring_backend;
extern const struct rtl_backend rtl_epoll_backend;

#endif
