/* The rows of a listing (listing.c makes them, packing.c tells them). */
#ifndef SHIFTFS_LISTING_H
#define SHIFTFS_LISTING_H

#include "native.h"

#define DOTS 2                  /* the cookies of `.` and `..` */

typedef struct {
    uint64_t cookie, number;
    PyObject *name;
    int kind;
} Row;

/* Which inode numbers of a layer's listing are those of the mount. */
enum { NUMBERS_OF_NONE, NUMBERS_OF_FILES, NUMBERS_OF_ALL };

PyObject *rows_of(int directory, uint64_t addend, int tells, int is_layered, int noatime);  /* NULL without an exception:
                                                                                               left to Python */
Py_ssize_t count_rows(PyObject *rows);                  /* of a Rows or a list; -1 for what is neither */
int row_at(PyObject *rows, Py_ssize_t at, Row *row);    /* PLAIN or FAILED; the name is the rows' */
PyObject *row_tuple(const Row *row);

#endif
