/* Where names are changed (names.c), and what does so (creating.c, removing.c). */
#ifndef SHIFTFS_NAMES_H
#define SHIFTFS_NAMES_H

#include "native.h"

/* A directory in which names may be changed. */
typedef struct {
    Inode *inode;
    Part parts[MOST_LAYERS];
    int count;
} Place;

int open_place(Lane *lane, Inode *inode, Place *place);     /* 0 if it is special: nothing is held then */
void close_place(Place *place);

/* Without the interpreter's lock. */
int error_at(int directory, const char *name, struct statx *found);     /* 0, or an errno */
int is_absent(const Part *parts, int from, int count, const char *name);
int is_unhidden(const Lane *lane, const Place *place, int count, const char *name);     /* by anything in the first parts */
int is_name_free(const Lane *lane, const Place *place, const char *name);

/* PLAIN or FAILED: */
int python_failed(Changed *changed);    /* with an errno to answer, or as it never should */
int python_did(PyObject *result, Changed *changed);     /* None, the errno to answer, or NULL; takes it over */

/* --- creating.c --- */

/* What is to be made: a regular file, a directory, or a symlink. */
typedef struct {
    mode_t type, mode, mask;
    const char *target;         /* of a symlink */
} Making;

int make(Lane *lane, Inode *parent, const struct fuse_in_header *header, const Making *making, const char *name,
         Changed *changed);

/* --- removing.c --- */

int remove_file(Lane *lane, Inode *parent, const char *name, Changed *changed);
int rename_file(Lane *lane, Inode *parent, uint64_t newdir, const char *name, const char *new_name, uint32_t flags,
                Changed *changed);

#endif
