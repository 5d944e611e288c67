// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"slices"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
)

// Fence holds a host for fenced, on evidence: from now on its metadata are the
// master's to read, and nothing that it asks for is done.
func Fence(m layout.Map, number uint32, evidence string) (layout.Map, error) {
	m = edit(m)
	h, err := anyHost(&m, number)
	if err != nil || h.State != layout.Member {
		return m, err
	}
	if evidence == "" {
		err := failure.New(failure.Precondition, "host %s: there is no evidence that it is fenced", h.Name)
		return m, failure.Hint(err, "run `diskhook thin on-fenced %s` with the fence agent's success, or type the host's name when asked", h.Name)
	}
	h.State, h.Evidence = layout.Fenced, evidence
	return m, nil
}

// FinishRecovery takes back what a fenced host had, once FinishDetach was done for
// each of its volumes.
func FinishRecovery(m layout.Map, number uint32) (layout.Map, error) {
	m = edit(m)
	h, err := anyHost(&m, number)
	if err != nil || h.State == layout.Recovered {
		return m, err
	}
	if h.State != layout.Fenced {
		err := failure.New(failure.Precondition, "host %s: it is not fenced", h.Name)
		return m, failure.Hint(err, "have it fenced, then run `diskhook thin on-fenced %s` with the evidence", h.Name)
	}
	if i := slices.IndexFunc(m.Volumes, func(v layout.VolumeRecord) bool { return v.Host == number }); i >= 0 {
		err := failure.New(failure.Conflict, "host %s: volume %s is still there", h.Name, m.Volumes[i].Name)
		return m, failure.Hint(err, "run `diskhook thin recover %s` again", h.Name)
	}
	h.State = layout.Recovered
	m.Give(m.Owned(ofHost(number)), free())
	return m, nil
}

// Accept takes a suspect volume for what it is, on somebody's word: from now on it
// is like any other that is offline.
func Accept(m layout.Map, number uint32) (layout.Map, error) {
	m = edit(m)
	v, err := in(&m, number, layout.Suspect, layout.Offline)
	if err != nil {
		return m, err
	}
	v.State = layout.Offline
	return m, nil
}

// Forget drops the record of a host that has no part in the cluster any more. Its
// number is never given again.
func Forget(m layout.Map, number uint32) (layout.Map, error) {
	h, err := anyHost(&m, number)
	if err != nil {
		return m, err
	}
	if h.State != layout.Recovered {
		err := failure.New(failure.Conflict, "host %s: it is in the cluster", h.Name)
		return m, failure.Hint(err, "run `diskhook thin drain` on it, or, if it is dead, `diskhook thin on-fenced %[1]s` and `diskhook thin recover %[1]s` on the master", h.Name)
	}
	m = edit(m)
	m.Hosts = slices.DeleteFunc(m.Hosts, func(h layout.HostRecord) bool { return h.Number == number })
	return m, nil
}
