// SPDX-License-Identifier: Apache-2.0

package devmapper

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// waitTurn is how long Wait sleeps at most before it looks at its context, in ms.
const waitTurn = 250

// Wait is Mapper's. DM_DEV_WAIT would sleep where no context reaches it. With
// DM_DEV_ARM_POLL (device-mapper 4.37) the control file becomes readable when
// any device has had an event since.
func (k Kernel) Wait(ctx context.Context, name string, since uint32) (uint32, error) {
	f, err := openControl()
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for {
		if errno := ioctl(f, unix.DM_DEV_ARM_POLL, newPacket("", "", 0, nil, 0)); errno != 0 {
			return 0, &Error{"wait", name, errno}
		}
		// What happened before arming is seen here, what happens after it below.
		info, err := k.Info(ctx, name)
		if err != nil || info.Events != since {
			return info.Events, err
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(fds, waitTurn)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return 0, fmt.Errorf("mapped device %s: wait: %w", name, err)
			}
			if err := context.Cause(ctx); err != nil {
				return 0, err
			}
			if n > 0 {
				break
			}
		}
	}
}
