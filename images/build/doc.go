// Package build turns a recipe into a bootable disk image, on a Debian host
// and as root, with no loop device and no mount on the host.
//
// A build has three stages, each with its own key in the cache:
//
//	packages  mmdebstrap runs in a private mount namespace where the host is
//	          read-only and only the build folder can be written
//	rootfs    the recipe's files and the caller's are laid over the packages
//	disk      ext4 by mke2fs -d, an ESP by mtools, GRUB for BIOS and UEFI, a GPT
//
// The disk goes into an images.Store as a compressed blob with a signed
// manifest. Kernel fetches the kernel and modules of the RAM system, which is
// Debian's server kernel like the image's own.
package build
