// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/request"
)

// untold is what the master did for verbs that had given up before its answer came, of
// each kind the latest. Whoever runs such a verb again finds it done, once; what such a
// verb makes is not told from what somebody else made by the map alone.
type untold struct {
	Gone *named `json:"gone,omitempty"` // was deleted
	Made *Made  `json:"made,omitempty"`
}

// named is a volume as people call it.
type named struct {
	Name string    `json:"name"`
	ID   uuid.UUID `json:"id"`
}

func (n *named) is(volume string) bool {
	return n != nil && (volume == n.Name || volume == n.ID.String())
}

// Made is a volume that was made of another one.
type Made struct {
	Of   uuid.UUID `json:"of"`
	Name string    `json:"name"`
	ID   uuid.UUID `json:"id"`
	// Attached says that it was made by a snapshot, of a volume that this host had.
	Attached bool      `json:"attached,omitempty"`
	Asked    time.Time `json:"asked"` // when the master was, which is what contents it has
}

// late is what is kept when the request of a journal was done for a verb of before.
func (j journal) late() untold {
	u := j.untold
	if j.Volume != nil {
		u.Gone = j.Volume
	}
	if j.Copy != nil {
		u.Made = j.Copy
	}
	return u
}

// goes is the volume that a request deletes.
func (s *session) goes(r request.Request) *named {
	if d, ok := r.(request.Delete); ok {
		for _, v := range s.m.Volumes {
			if v.Number == d.Volume {
				return &named{v.Name, v.UUID}
			}
		}
	}
	return nil
}

// comes is the volume that a request makes of another one.
func (s *session) comes(r request.Request) *Made {
	of, out := uint32(0), &Made{Asked: time.Now().UTC().Truncate(time.Second)}
	switch r := r.(type) {
	case request.Clone:
		of, out.Name, out.ID = r.Of, r.Name, r.ID
	case request.CloneAttached:
		of, out.Name, out.ID, out.Attached = r.Of, r.Name, r.ID, true
	}
	for _, v := range s.m.Volumes {
		if of != 0 && v.Number == of {
			out.Of = v.UUID
			return out
		}
	}
	return nil
}

// wasDeleted says that a volume that is not in the map any more went by an earlier
// verb's request, whose answer came after the verb had given up. It counts once. As
// long as there is none, that is the error.
func (s *session) wasDeleted(volume string) (bool, error) {
	j, err := s.journal()
	switch {
	case err != nil:
		return false, err
	case j.Volume.is(volume):
		return false, s.pending
	case !j.Gone.is(volume):
		return false, nil
	}
	j.Gone = nil
	return true, s.note(j)
}

// wasMade says the same of a volume of a name that was made of v, by a snapshot if it
// has to be.
func (s *session) wasMade(v layout.VolumeRecord, name string, snapshot bool) (bool, error) {
	j, err := s.journal()
	if err != nil || !j.Made.is(s.m, v, name, snapshot) {
		return false, err
	}
	j.Made = nil
	return true, s.note(j)
}

// is says that a map has the volume, and that it was made by such a verb.
func (m *Made) is(in layout.Map, of layout.VolumeRecord, name string, snapshot bool) bool {
	return m != nil && m.Of == of.UUID && m.Name == name && (m.Attached || !snapshot) && made(in, m.ID, name)
}

// Untold is what an earlier verb of this host has asked for and was not told of, as
// it would find it done if it were run again.
type Untold struct {
	j journal
	m layout.Map
}

// Untold looks without a lock and changes nothing.
func (c *Member) Untold(ctx context.Context) (Untold, error) {
	s, err := c.glance(ctx)
	if err == nil {
		err = s.belongs()
	}
	var out Untold
	if err == nil {
		out.m = s.m
		out.j, err = s.journal()
	}
	return out, errors.Join(err, s.close())
}

// Deleted says that there is no volume of a name because of such a Delete.
func (u Untold) Deleted(name string) bool {
	if _, err := find(u.m, name); err == nil {
		return false
	}
	return u.j.late().Gone.is(name)
}

// Made is the volume of a name that such a verb made of a volume, nil if there is none:
// a Snapshot, or also a Clone.
func (u Untold) Made(of layout.VolumeRecord, name string, snapshot bool) *Made {
	if m := u.j.late().Made; m.is(u.m, of, name, snapshot) {
		return m
	}
	return nil
}
