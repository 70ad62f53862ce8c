/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <luvfio/luvfio.h>

int luv_header_is_c89(void);

int luv_header_is_c89(void)
{
        struct luvfio_handlers handlers = { sizeof(handlers) };

        return (int) handlers.size;
}
