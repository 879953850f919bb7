package inspect

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"smelt/inventory"
)

// PermanentMAC asks a card for its burnt-in address (ETHTOOL_GPERMADDR,
// ethtool.h): the current one may have been changed by software.
func PermanentMAC(card string) (inventory.MAC, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return inventory.MAC{}, err
	}
	defer unix.Close(fd)
	const gpermaddr = 0x20
	q := struct {
		cmd, size uint32
		data      [32]byte
	}{cmd: gpermaddr, size: 32}
	if len(card) >= unix.IFNAMSIZ {
		return inventory.MAC{}, fmt.Errorf("network card %q: name is too long", card)
	}
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [24 - unsafe.Sizeof(uintptr(0))]byte
	}{data: unsafe.Pointer(&q)}
	copy(req.name[:], card)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); e != 0 {
		return inventory.MAC{}, e
	}
	if q.size != 6 {
		return inventory.MAC{}, fmt.Errorf("network card %s has an address of %d bytes", card, q.size)
	}
	return inventory.ParseMAC(fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", q.data[0], q.data[1], q.data[2], q.data[3], q.data[4], q.data[5]))
}
