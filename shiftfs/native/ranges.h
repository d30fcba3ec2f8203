/* Who has locked which bytes of a file (ranges.c), for those who grant locks (locks.c). */
#ifndef SHIFTFS_RANGES_H
#define SHIFTFS_RANGES_H

#include "native.h"

#define LAST ((uint64_t)INT64_MAX)      /* the last byte of a range that has no end */
#define MANY 500                        /* rows, as in shiftfs/locks/ranges.py: more are the twin's */

typedef struct {
    uint64_t owner, start, end, fh;
    uint32_t pid;
    int kind;
} Row;

/* Part of a range, and the strongest kind that anybody holds of it. */
typedef struct {
    uint64_t start, end;
    int kind;
} Span;

typedef struct {
    PyObject_HEAD
    PyObject *held;     /* what a row is told as */
    Row *rows;          /* of one owner and kind they neither meet nor touch */
    size_t count, room;
} FileLocks;

/* From here on the owner has this in the range, and nothing else. 0 where there is no memory. */
int set_row(FileLocks *locks, Row wanted);

/* What keeps an owner from a lock: the first in the range that another holds and does not share. */
const Row *find_conflict(const FileLocks *locks, uint64_t owner, uint64_t start, uint64_t end, int kind);

/* The spans of a range, with the strongest kind of each: their count, or -1. `spans` is to be freed. */
ssize_t find_needed(const FileLocks *locks, uint64_t start, uint64_t end, Span **spans);

PyObject *tell_row(FileLocks *self, const Row *row);

#endif
