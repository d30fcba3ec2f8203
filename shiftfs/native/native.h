/* What the parts of shiftfs._native share. */
#ifndef SHIFTFS_NATIVE_H
#define SHIFTFS_NATIVE_H

#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <linux/fuse.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include "splicing.h"

#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x1000       /* Linux 5.8; headers may be older */
#endif

/* --- inode.c --- */

/* A real key: device, inode number, type (for directories with the mount's id above it) and birth time. The kernel's
 * own numbers of devices have no more bits, and it gives mounts the lowest that are free. */
typedef struct {
    uint64_t number;
    int64_t born;
    uint32_t device, kind;
} Key;

#define MOST_MOUNT (UINT32_MAX >> 4)

typedef struct {
    PyObject_HEAD
    uint64_t nodeid;
    int64_t nlookup : 63;
    uint64_t unlinked : 1;
    Key key;
    PyObject *entry;    /* NULL: still to be made, by what it was found in */
    union {
        PyObject *place;        /* the directory of a layer that it was found in, until it has an entry: see place_of */
        PyObject *children;     /* what it has been told to have in it, from then on: see children_of */
    };
    PyObject *parent;
    PyObject *name;
    PyObject *watch;
} Inode;    /* there may be millions: 96 bytes, and 16 of the collector's before them, are a size that malloc has */

extern PyTypeObject InodeType;

Inode *new_inode(PyTypeObject *type, uint64_t nodeid, const Key *key);
int read_key(PyObject *from, Key *key);
PyObject *key_tuple(const Key *key);
PyObject *or_none(PyObject *value);
static inline int is_directory(const Inode *inode)
{
    return (inode->key.kind & 0xF) == S_IFDIR >> 12;
}

int make_entry(Inode *inode);       /* if it has none yet; -1: an exception is set */

static inline PyObject *place_of(const Inode *inode)
{
    return inode->entry == NULL ? inode->place : NULL;
}

static inline PyObject *children_of(const Inode *inode)
{
    return inode->entry == NULL ? NULL : inode->children;
}

/* --- table.c --- */

typedef struct {
    Inode **slots;      /* a power of two of them, at most two thirds in use */
    size_t mask, used;
} Index;

typedef struct {
    PyObject_HEAD
    Index by_nodeid;    /* holds the references */
    Index by_key;
    unsigned long long next;    /* the nodeid that nothing has had so far */
} Store;

extern PyTypeObject StoreType;

int same_key(const Key *a, const Key *b);
Inode **find_nodeid(const Index *index, uint64_t nodeid);
Inode **find_key(const Index *index, const Key *key);
int knows_number(const Index *by_key, uint64_t number);    /* Is there any of this inode number, on whatever device? */
int insert(Store *store, Inode *inode);
int insert_new(Store *store, Inode *inode);     /* one of which neither nodeid nor key is there */
Inode *take(Store *store, uint64_t nodeid);     /* the reference goes to the caller */
void unkey(Store *store, Inode *inode);

/* --- lookup.c, lane.c --- */

#define FOREVER ((uint64_t)1 << 31)     /* seconds */
#define MOST_LAYERS 64
#define OPCODES 64
#define EVENTS 16

typedef struct {
    uint64_t device, addend;    /* what is added to its inode numbers */
} Device;

typedef struct {
    uint64_t count, errors, total, longest;
} Count;

/* Which changes are served, and with what; Lane.changes keeps it. */
typedef struct {
    uint64_t opcodes;           /* a bit for each */
    PyObject *uids, *gids;      /* real ones of those that are shown */
    PyObject *made;             /* made(parent, name, type) -> the entry reply of what has just been made there */
    PyObject *has_moved, *has_gone, *is_hidden, *pinned;    /* as tree.Names */
    Py_ssize_t most_pinned;
    const char *whiteout;       /* linked to from `whiteout_in`; NULL where those are no devices */
    int whiteout_in;
    uint32_t own_uid, own_gid;
} Changes;

/* What listings are made with; Lane.listings keeps it. */
typedef struct {
    PyObject *kept;             /* inode -> rows, while somebody may be in the middle of them */
    PyObject *other;            /* other(directory, row) -> bytes of READDIRPLUS of what is special, None for what has gone */
    int drops;                  /* may there be directories of the upper that do not show? */
    int noatime;                /* O_NOATIME or 0 */
} Lists;

typedef struct {
    PyObject_HEAD
    int fd, poll;
    Store *store;
    PyObject *buffers, *agents, *viewed, *readers, *came_from, *made_of, *uids, *gids, *adopt, *forget, *let_go, *changes,
        *contents, *locks, *listings, *open, *copies;
    Changes may;
    Lists lists;
    Device devices[MOST_LAYERS];
    int device_count;
    int is_layered, first_lower, last_layer;
    int spins;
    uint64_t answered_at;
    uint64_t gap;               /* how long the last request took to come */
    Count counts[OPCODES];
    int heard[EVENTS];          /* other descriptors that have been found ready, */
    int heard_count;            /* whose events may not come again */
    Pipe pipe;
} Lane;

extern PyTypeObject LaneType;

/* One directory of a layer, at hand. */
typedef struct {
    PyObject *real;
    PyObject *path;             /* keeps the descriptor open */
    int fd, layer;
} Part;

/* PLAIN: done; ABSENT: there is no such name; SPECIAL: left to Python; FAILED: an exception is set */
enum { PLAIN, ABSENT, SPECIAL, FAILED };

int part_of(PyObject *real, Part *part, int is_layered);
int directory_parts(Lane *lane, Inode *directory, Part *parts);
void release_parts(Part *parts, int count);
void look_for(const Lane *lane, const Part *parts, int count, const char *name);  /* and forget it */
int lookup_in(Lane *lane, Inode *parent, const Part *parts, int count, const char *name, PyObject *called,
              struct fuse_entry_out *out);      /* `called`: the same name, or NULL */
int tells_all(PyObject *watch);    /* is nothing unheard of that changes what is watched? None tells nothing */
int top_of(Lane *lane, Inode *inode, Part *part);
uint64_t statx_device(const struct statx *found);
uint64_t statx_mount(const struct statx *found);
int key_of(const struct statx *found, Key *key);     /* 0 for what has no birth time, or one that does not fit */
const Device *device_of(const Lane *lane, uint64_t device);     /* NULL for one of which nothing is known yet */
int mapped_id(PyObject *map, uint32_t from, uint32_t *to);      /* UNMAPPED for none; FAILED or PLAIN */
int describe(Lane *lane, const struct statx *found, uint64_t addend, struct fuse_attr *attr);
int lookup(Lane *lane, uint64_t nodeid, const char *name, struct fuse_entry_out *out);

/* --- adopting.c --- */

int adopt(Lane *lane, Inode *parent, const Part *part, const char *name, const struct statx *found,
          struct fuse_entry_out *out);
int adopt_called(Lane *lane, Inode *parent, const Part *part, const char *name, PyObject *called,
                 const struct statx *found, struct fuse_entry_out *out);    /* `called`: the same name, or NULL */

/* --- lane.c, data.c, storing.c --- */

int is_agents(Lane *lane, uint32_t pid);    /* -1: an exception is set */
int respond(Lane *lane, const struct fuse_in_header *request, int error, void *payload, size_t size, uint64_t began);

extern PyTypeObject ContentsType;

int open_content(const Lane *lane, PyObject *entry, int flags);     /* a descriptor, or -1: left to Python */
int is_at_work(const Lane *lane, Inode *inode);
int note_told(const Lane *lane, Inode *inode);     /* the kernel has set the time of a file; -1: an exception is set */
int take_back(Lane *lane);       /* what writes on threads have held; -1: an exception is set */
int serve_contents(Lane *lane, const struct fuse_in_header *header, const char *body, size_t length, uint64_t began);

/* --- receiving.c --- */

ssize_t receive(Lane *lane, PyObject *buffer, int served);  /* as read(2); 0 if something else is to be done first */
int without_pipe(Lane *lane, PyObject *buffer, size_t size, int result);    /* the request has been served, with `result` */
int is_next_ours(Lane *lane);           /* Is our connection ready, and nothing else? */
int hears_nothing(Lane *lane);          /* Is there nothing to be read but by the lane? Else it is left to Python. */

/* --- locks.c --- */

extern PyTypeObject FileLocksType;

int serve_lock(Lane *lane, const struct fuse_in_header *header, const char *body, size_t length, uint64_t began);

/* --- reads.c, waiting.c --- */

extern PyTypeObject ReadsType;

/* Is a read taken over, to be answered by a thread? `fd` is the caller's as before. */
int read_aside(PyObject *reads, const struct fuse_in_header *header, int fd, size_t size, off_t offset, uint64_t began);

/* --- writing.c --- */

/* What a write of one inode needs of its mount. */
typedef struct {
    PyObject *reads, *at_work, *buffers, *inode;
    int is_slow;                /* do writes of its device wait at present? */
} Writing;

/* Is a write, of which all has been received in the present buffer, taken over? PLAIN, SPECIAL (it is not) or FAILED. */
int write_aside(Writing *writing, const struct fuse_in_header *header, int fd, uint64_t began);
int take_over(PyObject *reads, PyObject *at_work, PyObject *buffers);     /* -1: an exception is set */

/* --- calls.c --- */

PyObject *native_look(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *native_list_directory(PyObject *module, PyObject *argument);
PyObject *native_list_attributes(PyObject *module, PyObject *args);
PyObject *native_encode_handle(PyObject *module, PyObject *args);

/* --- calls.c, lookup.c, listing.c --- */

#define LISTXATTRAT 465         /* Linux 6.13 */

/* struct linux_dirent64 of getdents64(2). */
struct record {
    uint64_t number;
    int64_t next;
    uint16_t length;
    uint8_t kind;
    char name[];
};

static inline int is_dot(const char *name)
{
    return name[0] == '.' && (name[1] == 0 || (name[1] == '.' && name[2] == 0));
}

/* --- listing.c --- */

extern PyTypeObject RowsType;

PyObject *native_rows(PyObject *module, PyObject *args);

/* --- packing.c --- */

PyObject *Lane_pack(Lane *self, PyObject *args);

int init_listings(Lane *lane, PyObject *listings);
int serve_listing(Lane *lane, const struct fuse_in_header *header, const char *body, size_t length, uint64_t began);

/* --- events.c --- */

extern PyTypeObject ReaderType;

int reader_fd(PyObject *object);        /* -1 for what is none */
int skip_events(PyObject *reader);      /* reads what concerns nobody; is there anything else? */

/* --- closing.c --- */

int may_close_aside(void);      /* Is there room for one? */
void close_aside(int fd);       /* soon, by somebody else; only if there is room */
PyObject *native_closed_all(PyObject *module, PyObject *unused);

/* --- attributes.c --- */

int attributes_of(Lane *lane, uint64_t nodeid, struct fuse_attr_out *out);
int is_without(Lane *lane, uint64_t nodeid, const char *name);
int is_for_terminals(Lane *lane, uint64_t nodeid, const char *body, size_t length);
Py_ssize_t plain_count(Lane *lane, Inode *inode);
int is_followed(Inode *inode);
int is_written(Lane *lane, Inode *inode);

/* --- changes.c --- */

/* What is answered to a change: `size` bytes after the header, or an error. */
typedef struct {
    struct fuse_out_header header;
    union {
        struct fuse_attr_out attr;
        struct fuse_entry_out entry;
    };
    size_t size;
    int error;
} Changed;

/* Where an inode is: open itself (name is NULL), or `name` in a directory that is. */
typedef struct {
    Part part;
    PyObject *name;
    Key key;            /* of the real inode */
    int is_merged;      /* a directory with parts below */
} Reach;

#define SEEN (STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID)

int reach_found(Lane *lane, Inode *inode, Reach *reach);   /* one that has no entry yet; 0 if that is not at hand */
int reach_real(PyObject *real, Reach *reach);               /* a real inode; its part is not said to be merged */
void release_reach(Reach *reach);
int open_reach(const Reach *reach);
void close_reach(const Reach *reach, int fd);
int look_at(int fd, struct statx *found);
int is_key_of(const Key *key, const struct statx *found);
int init_changes(Lane *lane, PyObject *changes);
int change(Lane *lane, const struct fuse_in_header *header, const char *body, size_t length, Changed *changed);

/* --- changes.c, names.c, removing.c --- */

#define UNMAPPED 0xFFFFFFFFu

int is_changed_here(const Lane *lane, int layer);
int real_id(PyObject *map, int is_given, uint32_t shown, uint32_t *real);
int has_one_place(Lane *lane, Inode *inode);    /* Is no more than one name of it known? */
int change_name(Lane *lane, Inode *inode, const struct fuse_in_header *header, const char *body, size_t length,
                Changed *changed);

#define OWNER (FATTR_UID | FATTR_GID)
#define TIMES (FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW)

/* What attributes are to be, in real ids. */
typedef struct {
    uint32_t valid, mode, uid, gid;
    struct timespec times[2];
} Wanted;

int takes_set_ids(const Wanted *wanted, mode_t mode);   /* Are bits of the mode to go, as well as what is wanted? */

/* --- patience.c --- */

#define NEVER UINT64_MAX

/* Of one kind of work. */
typedef struct {
    uint64_t slow_until, slow_for;
} Patience;

typedef struct {
    Patience *patience;
    uint64_t began, until;
} Wait;

uint64_t now(void);                     /* nanoseconds of CLOCK_MONOTONIC */
int is_slow(const Patience *patience);  /* Is nothing to be tried at present? */
Wait begin_wait(Patience *patience, uint64_t most);
int goes_on(const Wait *wait);          /* 0 when it has been in vain */
void was_worth_it(const Wait *wait);    /* it is over */

/* --- making.c --- */

#define LARGEST_COPY (64 * 1024)    /* bytes of content */

/* Where small files are copied. */
typedef struct {
    const char *attribute;      /* the name of overlay.origin */
    int directory;
    int syncs;                  /* contents are on the disk before they have a name */
    int is_known_to_copy;       /* its filesystem shares no contents */
    Patience patience;
    char room[LARGEST_COPY + 1];
} Workshop;

/* What a copy is to be like, besides its content. */
typedef struct {
    uint32_t uid, gid;
    mode_t mode;
    struct timespec times[2];
} Made;

/* A copy of what the descriptor `lower` is of, open for writing, or -1; `uuid`: its filesystem's. `source` is left open, or
 * is -1. */
int make_copy(Workshop *shop, const char *uuid, const Made *as, size_t size, int lower, int *source, Key *key);

/* --- opening.c, copies.c --- */

int open_directory(const Lane *lane, PyObject *real);   /* O_PATH, beneath the one above; -1: left to Python */
int reopen(int fd, int flags);          /* what a descriptor (O_PATH too) holds; O_NOATIME as far as it is allowed */

extern PyTypeObject CopiesType;

/* Bring a file up, if it is in a lower layer and nothing is special about that; as is `wanted`, but for its owner. Without
 * that, its entry is to have it open from then on. `copy` is it, open for writing. Whatever comes of it, finish_copy is
 * called before anything looks at the entry, when the request has been answered. */
int bring_up(Lane *lane, Inode *inode, const Wanted *wanted, int *copy);
void finish_copy(Lane *lane);

/* --- module.c --- */

extern PyObject *s_path, *s_fd, *s_present, *s_steady, *s_upper, *s_lowers, *s_layer, *s_is_marked, *s_entry_of, *s_links,
    *s_removed, *s_parent, *s_name;

#endif
