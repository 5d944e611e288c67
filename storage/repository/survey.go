// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"sync"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/repository/format"
)

// Standing is a connected repository and how it is right now.
type Standing struct {
	Connection
	State StandingState `json:"state"`
	// Error says why it is not Connected.
	Error        string               `json:"error,omitempty"`
	Capacity     *format.Capacity     `json:"capacity,omitempty"`
	Capabilities *format.Capabilities `json:"capabilities,omitempty"`
}

// StandingState is whether a repository can be used.
type StandingState string

// The states of repositories.
const (
	Connected   StandingState = "connected"
	Unreachable StandingState = "unreachable" // it did not answer in time
	Unusable    StandingState = "unusable"    // it answers, and it is not what was connected
)

// surveyTime is for how long one repository is waited for in a survey.
const surveyTime = 5 * time.Second

// Survey looks at all connected repositories at the same time, by their ids. One
// that hangs is Unreachable after 5 seconds, or the deadline if that is shorter.
func (s *Service) Survey(ctx context.Context) ([]Standing, error) {
	ids, err := s.connectionIDs()
	if err != nil {
		return nil, err
	}
	bounded := *s
	bounded.Deadline = min(s.Deadline, surveyTime)
	all := make([]Standing, len(ids))
	var looking sync.WaitGroup
	for i, id := range ids {
		looking.Go(func() { all[i] = bounded.standing(ctx, id) })
	}
	looking.Wait()
	return all, ctx.Err()
}

func (s *Service) standing(ctx context.Context, repoID string) Standing {
	c, err := s.Connection(repoID)
	c.RepoID = repoID
	st := Standing{Connection: c, State: Connected}
	if err == nil {
		err = s.ask(ctx, &st)
	}
	switch {
	case errors.Is(err, ErrUnreachable):
		st.State, st.Error = Unreachable, failure.Line(err)
	case err != nil:
		st.State, st.Error = Unusable, failure.Line(err)
	}
	return st
}

// ask opens the repository and asks for what changes.
func (s *Service) ask(ctx context.Context, st *Standing) error {
	r, err := s.connected(ctx, st.RepoID)
	if err != nil {
		return err
	}
	defer r.close()
	capacity, err := step(ctx, r, "ask for its capacity", r.place.Capacity)
	if err != nil {
		return err
	}
	can, err := step(ctx, r, "ask for its capabilities", func(context.Context) (format.Capabilities, error) {
		return r.place.Capabilities(), nil
	})
	if err == nil {
		st.Capacity, st.Capabilities = &capacity, &can
	}
	return err
}
