// Package build turns a recipe into a bootable disk image, on a Debian host
// and as root, with no loop device and no mount on the host.
//
// Resolve asks a recipe's sources, as they are now, for every package that its
// image is made of and with, and writes them into a Lock. Build takes nothing
// else: the same recipe and lock give the same manifest, bit for bit. Its
// stages have keys of their own in the cache:
//
//	tools     what makes the disk, unpacked from the lock: the host's own
//	          mke2fs and GRUB have no say
//	packages  mmdebstrap installs exactly the locked packages, in a private
//	          mount namespace where the host is read-only and only the build
//	          folder can be written
//	modules   the driver's modules are made in a tree of their own, of which
//	          nothing else reaches the image
//	rootfs    the caller's files are laid over
//	disk      ext4 by mke2fs out of a tar, an ESP by mtools, GRUB for BIOS and
//	          UEFI, a GPT
//
// The disk goes into an images.Store as a compressed blob with a signed
// manifest, a bill of materials and its provenance. Kernel fetches the kernel
// and modules of the RAM system, which is Debian's server kernel like the
// image's own.
package build
