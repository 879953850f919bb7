package power

// A Remarker is a Controller that may find something odd about a call that is
// no error: a BMC that dropped the UEFI bit of a boot device, or forgets it
// after 60 s. It stands in the evidence of the verb.
type Remarker interface {
	// Remarks returns what was odd since it was asked last.
	Remarks() []string
}

// remarks are those of c, or of the links of a chain.
func remarks(c Controller) []string {
	if chain, ok := c.(*Chain); ok {
		var all []string
		for _, l := range chain.links {
			all = append(all, remarks(l.c)...)
		}
		return all
	}
	if r, ok := c.(Remarker); ok {
		return r.Remarks()
	}
	return nil
}
