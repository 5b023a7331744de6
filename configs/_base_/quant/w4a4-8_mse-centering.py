# Keys and values of the float model are centered first (exact).
_base_ = ['./w4a4-8_mse.py']
rewrites = [
    dict(
        type='AttentionCentering',
        key_center='midrange',
        value_center='midrange',
    )
]
