"""The focus on what decoding reads.

Of regression heads the foreground, of confidence heads every place, since
noise on their background makes false lanes. All heads weigh the same, and
within a head each channel, whose unit is its own.
"""

reconstruction = dict(
    loss=dict(
        _delete_=True,
        type='SelectiveFocusLoss',
        focus='soft',
        focus_kinds=['regression'],
        eps_bg=dict(regression=0.05),
        normalize='channel',
        selection=None,
    )
)
