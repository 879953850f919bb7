package build

import "fmt"

// PackageChanges lists what is different between two lists of packages, by
// name.
func PackageChanges(before, after []Locked) []Change {
	var all []Change
	i, j := 0, 0
	for i < len(before) || j < len(after) {
		switch {
		case j == len(after) || i < len(before) && before[i].Name < after[j].Name:
			all = append(all, Change{Name: before[i].Name, Before: before[i].Version})
			i++
		case i == len(before) || after[j].Name < before[i].Name:
			all = append(all, Change{Name: after[j].Name, After: after[j].Version})
			j++
		default:
			if a, b := before[i], after[j]; a.Version != b.Version {
				all = append(all, Change{a.Name, a.Version, b.Version})
			} else if a.SHA256 != b.SHA256 {
				all = append(all, Change{a.Name, a.Version + " (" + a.SHA256.Short() + ")", b.Version + " (" + b.SHA256.Short() + ")"})
			}
			i++
			j++
		}
	}
	return all
}

// A Change is one difference: Before or After is empty where there was none.
type Change struct {
	Name   string `json:"name"`
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

func (c Change) String() string {
	switch {
	case c.Before == "":
		return fmt.Sprintf("+ %s %s", c.Name, c.After)
	case c.After == "":
		return fmt.Sprintf("- %s %s", c.Name, c.Before)
	}
	return fmt.Sprintf("~ %s %s -> %s", c.Name, c.Before, c.After)
}
