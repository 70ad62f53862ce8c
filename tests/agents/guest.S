/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * A guest in a boot sector. It counts, and writes the count to the serial port in hexadecimal, a line each; with an
 * exclamation mark if what it had written to memory before is not there.
 */
        .code16
        .text
start:
        cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x7c00, %sp
        xor     %ebx, %ebx
        mov     %ebx, 0x9000
count:
        cmp     %ebx, 0x9000
        je      1f
        mov     $'!', %al
        call    put
1:      inc     %ebx
        mov     %ebx, 0x9000
        mov     %ebx, %edx
        mov     $8, %cx
digit:
        rol     $4, %edx
        mov     %dl, %al
        and     $15, %al
        add     $'0', %al
        cmp     $'9', %al
        jbe     2f
        add     $7, %al
2:      call    put
        loop    digit
        mov     $'\n', %al
        call    put
        mov     $0x200000, %ecx
3:      dec     %ecx
        jnz     3b
        jmp     count
put:
        push    %dx
        push    %ax
        mov     $0x3fd, %dx
4:      in      %dx, %al
        test    $0x20, %al
        jz      4b
        pop     %ax
        mov     $0x3f8, %dx
        out     %al, %dx
        pop     %dx
        ret
        .org    510
        .word   0xaa55
