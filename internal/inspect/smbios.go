package inspect

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/siderolabs/go-smbios/smbios"

	"smelt/inventory"
)

type smbiosTable struct {
	board inventory.Board
	dimms []inventory.DIMM
	bmc   bool
}

func (s System) smbios() (smbiosTable, error) {
	dmi, err := s.read("sys/firmware/dmi/tables/DMI")
	if err != nil {
		return smbiosTable{}, errors.New("the firmware has no table")
	}
	ep, err := s.read("sys/firmware/dmi/tables/smbios_entry_point")
	if err != nil {
		ep = nil
	}
	return parseSMBIOS(dmi, ep)
}

// parseSMBIOS reads a table. It comes from firmware that a previous owner may
// have changed: the library is given a bounded copy and may not take us down.
func parseSMBIOS(dmi, ep []byte) (t smbiosTable, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("table is damaged (%v)", r)
		}
	}()
	// A table cut short loses its last structures, not all of them.
	dmi = append(bytes.Clone(dmi), 127, 4, 0, 0, 0, 0)
	m, err := smbios.Decode(bytes.NewReader(dmi), entryVersion(ep))
	if err != nil {
		return t, fmt.Errorf("table is damaged (%v)", err)
	}
	var base, system, chassis, bios bool
	for _, st := range m.Structures {
		// Of several (the nodes of a blade chassis) the first is this machine.
		switch st.Header.Type {
		case 0:
			if !bios {
				bios = true
				b := smbios.NewBIOSInformation(st)
				t.board.BIOSVendor, t.board.BIOSVersion = clean(b.Vendor), clean(b.Version)
			}
		case 1:
			if !system {
				system = true
				y := smbios.NewSystemInformation(st, m.Version)
				t.board.SystemVendor, t.board.SystemProduct = clean(y.Manufacturer), clean(y.ProductName)
				t.board.SystemSerial, t.board.SystemUUID = clean(y.SerialNumber), clean(y.UUID)
			}
		case 2:
			if !base {
				base = true
				b := smbios.NewBaseboardInformation(st)
				t.board.Vendor, t.board.Product, t.board.Serial = clean(b.Manufacturer), clean(b.Product), clean(b.SerialNumber)
			}
		case 3:
			if !chassis {
				chassis = true
				t.board.ChassisSerial = clean(smbios.NewSystemEnclosure(st).SerialNumber)
			}
		case 17:
			d := smbios.NewMemoryDevice(st)
			if size := dimmSize(*d); size > 0 {
				t.dimms = append(t.dimms, inventory.DIMM{
					Locator: clean(d.DeviceLocator), Size: size,
					Serial: clean(d.SerialNumber), Part: clean(d.PartNumber),
				})
			}
		case 38: // IPMI device (DSP0134 7.39)
			t.bmc = true
		}
	}
	return t, nil
}

// dimmSize is the size of a memory device in bytes, 0 when nothing is fitted
// (DSP0134 7.18: 0x7fff says look at the extended size in MiB; bit 15 says KiB).
func dimmSize(d smbios.MemoryDevice) int64 {
	switch v := uint16(d.Size); {
	case v == 0 || v == 0xffff:
		return 0
	case v == 0x7fff:
		return int64(uint32(d.ExtendedSize)&0x7fffffff) << 20
	case v&0x8000 != 0:
		return int64(v&0x7fff) << 10
	default:
		return int64(v) << 20
	}
}

// entryVersion is the version in an entry point (DSP0134 5.2): it decides the
// byte order of the UUID.
func entryVersion(ep []byte) smbios.Version {
	switch {
	case len(ep) >= 10 && string(ep[:5]) == "_SM3_":
		return smbios.Version{Major: int(ep[7]), Minor: int(ep[8]), Revision: int(ep[9])}
	case len(ep) >= 8 && string(ep[:4]) == "_SM_":
		return smbios.Version{Major: int(ep[6]), Minor: int(ep[7])}
	}
	return smbios.Version{Major: 2, Minor: 8}
}
