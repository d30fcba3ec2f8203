/* A copy of a small file that has no name yet, whole and on the disk; or none at all.
 *
 * Owns whether none can be made. Nobody is waited for without a bound (patience.c): what the disk has not read or written
 * within moments is not made here. Holds no state of the interpreter's, nor its lock. Loop thread.
 */
#include "native.h"

#include <endian.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define CACHESTAT 451               /* Linux 6.5 */
#define PATIENCE 2000000            /* nanoseconds that a disk is waited for, awake */
#define LARGEST_HANDLE 128

/* struct cachestat_range and struct cachestat of linux/mman.h, which may be older */
struct span {
    uint64_t offset, length;
};

struct pages {
    uint64_t cached, dirty, written, evicted, recently_evicted;
};

/* The whole content, as soon as the disk has given it. */
static int read_soon(Workshop *shop, int source, size_t size, const Wait *wait)
{
    struct iovec part = {shop->room, size + 1};
    do {
        ssize_t count = preadv2(source, &part, 1, 0, RWF_NOWAIT);
        if (count == (ssize_t)size)
            return 1;
        if (count > (ssize_t)size || (count < 0 && errno != EAGAIN))
            return 0;
    } while (goes_on(wait));
    return 0;
}

/* Is all of a file on the disk, as soon as it has been written there? */
static int written_soon(Workshop *shop, int made, const Wait *wait)
{
    const struct span all = {0, 0};
    struct pages pages;
    for (;;) {
        if (syscall(CACHESTAT, made, &all, &pages, 0)) {
            if (errno == ENOSYS)
                shop->patience.slow_until = NEVER;
            return 0;
        }
        if (pages.dirty == 0 && pages.written == 0)
            break;
        if (!goes_on(wait))
            return 0;
    }
    unsigned all_of_it = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    return sync_file_range(made, 0, 0, all_of_it) == 0;  /* did it fail? */
}

/* `overlay.origin` (overlay/origin.py) */
static int note_origin(const Workshop *shop, const char *uuid, int lower, int made)
{
    union {
        struct file_handle handle;
        char room[sizeof(struct file_handle) + LARGEST_HANDLE];
    } given;
    unsigned char value[21 + LARGEST_HANDLE] = {0, 0xFB, 0, __BYTE_ORDER == __BIG_ENDIAN};
    int mount;
    given.handle.handle_bytes = LARGEST_HANDLE;
    if (name_to_handle_at(lower, "", &given.handle, &mount, AT_EMPTY_PATH))
        return 0;
    size_t size = 21 + given.handle.handle_bytes;
    value[2] = (unsigned char)size;
    value[4] = (unsigned char)given.handle.handle_type;
    memcpy(value + 5, uuid, 16);
    memcpy(value + 21, given.handle.f_handle, given.handle.handle_bytes);
    return fsetxattr(made, shop->attribute, value, size, 0) == 0;
}

/* Can it share contents? Then small files do so too, which is left to Python: it may have to wait. */
static int shares_content(Workshop *shop, int source, int made)
{
    struct file_clone_range none = {.src_fd = source, .src_offset = 1, .src_length = 1};  /* which is no block */
    int failed = shop->is_known_to_copy ? 0 : ioctl(made, FICLONERANGE, &none);
    if (shop->is_known_to_copy || (failed && errno == EXDEV))
        return 0;
    shop->is_known_to_copy = failed && errno == EOPNOTSUPP;
    if (!shop->is_known_to_copy)
        shop->patience.slow_until = NEVER;
    return !shop->is_known_to_copy;
}

/* What can be done before the content is there. The key is known from here on, and its mode so far. */
static int prepare(Workshop *shop, const char *uuid, const Made *as, int lower, int source, int made, Key *key,
                   mode_t *mode)
{
    ssize_t attributes = flistxattr(source, NULL, 0);
    struct statx found;
    if (attributes > 0 || (attributes < 0 && errno != EOPNOTSUPP) || shares_content(shop, source, made)
        || look_at(made, &found) || !key_of(&found, key))
        return 0;
    *mode = found.stx_mode & 07777;
    if (!note_origin(shop, uuid, lower, made))
        return 0;
    return (found.stx_uid == as->uid && found.stx_gid == as->gid) || fchown(made, as->uid, as->gid) == 0;
}

/* The rest, but its name; the disk works meanwhile. Whoever writes may lose set-id bits by that, and all change times. */
static int fill(Workshop *shop, const Made *as, size_t size, int source, int made, mode_t mode, const Wait *wait)
{
    if (!read_soon(shop, source, size, wait) || pwrite(made, shop->room, size, 0) != (ssize_t)size)
        return 0;
    int is_awaited = shop->syncs && size;
    if (is_awaited && sync_file_range(made, 0, 0, SYNC_FILE_RANGE_WRITE))
        return 0;
    if ((mode != (as->mode & 07777) && fchmod(made, as->mode & 07777)) || futimens(made, as->times))
        return 0;
    if (is_awaited && !written_soon(shop, made, wait))
        return 0;
    was_worth_it(wait);
    return 1;
}

int make_copy(Workshop *shop, const char *uuid, const Made *as, size_t size, int lower, int *source, Key *key)
{
    Wait wait = begin_wait(&shop->patience, PATIENCE);
    *source = reopen(lower, O_RDONLY | O_NOATIME);
    if (*source < 0)
        return -1;
    if (size)
        posix_fadvise(*source, 0, (off_t)size, POSIX_FADV_WILLNEED);
    mode_t at_first = (as->mode & 0600) == 0600 ? as->mode & 0777 : 0600;   /* we may have no rights but an owner's */
    mode_t mode;
    int made = openat(shop->directory, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, at_first);
    if (made < 0 || (prepare(shop, uuid, as, lower, *source, made, key, &mode)
                     && fill(shop, as, size, *source, made, mode, &wait)))
        return made;
    close(made);
    return -1;
}
