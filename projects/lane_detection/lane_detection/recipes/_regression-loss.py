"""Focus on the outputs that decoding reads.

For regression heads this is the foreground; for confidence heads all
positions, since noise on their background creates false lanes. All heads have
the same weight, and so have the channels of a head, each in its own unit.
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
