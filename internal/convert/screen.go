package convert

import (
	"net/url"
	"strings"

	"smelt/inventory"
	"smelt/pxe"
)

// screen puts on b what the screen of a machine shows of its node: who it is,
// and how whoever stands before it comes to its page.
func (c *Conductor) screen(n inventory.Node, b *pxe.Boot) {
	c.mu.Lock()
	b.Code = c.codes.Of(n.ID)
	c.mu.Unlock()
	b.Page = page(c.Site.Public, b.Code)
	who := "node " + string(n.ID)
	if n.Spec.Position != "" {
		who += " at " + string(n.Spec.Position)
	}
	b.Screen = append(b.Screen, who, "state "+n.State.String())
}

// page is the URL of a node's page. In upper case it is a smaller QR code
// (ISO/IEC 18004, alphanumeric mode); a path of the site's own in front of it
// may tell upper from lower case, names of hosts and schemes do not.
func page(public, code string) string {
	if public == "" {
		return ""
	}
	if u, err := url.Parse(public); err == nil && u.Path == "" {
		return strings.ToUpper(public) + "/N/" + code
	}
	return public + "/n/" + code
}
