// Package pg knows PostgreSQL 13 to 18 as files and as a server.
//
// As files: the control file, page checksums, WAL segment names and headers, timeline history. As a server: one
// session for the backup functions and the few settings Holdfast writes, and starting and stopping with pg_ctl.
// Nothing here knows of stanzas, repositories or archives.
//
// # global/pg_control
//
// 8192 bytes, of which the server uses fewer than 512 so that a write is one disk sector. All numbers are in the
// byte order of the machine; Holdfast reads little endian clusters only. Offsets are the same in 13 to 17; 18 puts
// one flag before the nonce, which moves the checksum by four bytes.
//
//	 0 system identifier      u64      32 checkpoint LSN              u64
//	 8 control version        u32      48 checkpoint's timeline       u32
//	12 catalog version        u32     216 page size                   u32
//	16 state                  u32     224 WAL page size               u32
//	24 time of last write     i64     228 WAL segment size            u32
//	                                  252 data checksum version       u32
//	                                  288 CRC32C of what precedes     u32   (18: at 292)
//
// # First page of a WAL segment
//
//	0 magic   u16     8 page address      u64     24 system identifier  u64
//	2 flags   u16    16 remaining length  u32     32 segment size       u32
//	4 timeline u32   20 padding                   36 WAL page size      u32
//
// Flag 0x0002 says that the part from 24 on is there; it is on every first page of a segment.
//
// # Page
//
//	0 LSN  u64   8 checksum u16   10 flags u16   12 lower u16   14 upper u16   16 special u16   18 size and version u16
//
// A page with upper 0 was never initialised and must be zero all over. See PageChecksum for the algorithm.
package pg
